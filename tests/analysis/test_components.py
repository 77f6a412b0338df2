"""Principal components by layer, against scikit-learn's full decomposition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from stratascope.analysis import PrincipalComponents, principal_components
from stratascope.analysis.principal_components import first_components
from stratascope.errors import InvalidInputError, TooFewExamplesError


@pytest.mark.parametrize("shape", [(60, 8), (7, 40), (3, 3)])
def test_components_are_those_of_a_full_decomposition(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(shape[0]).normal(size=shape) @ np.diag(np.geomspace(1, 30, shape[1])) + 1000
    scores, explained = first_components(x)
    oracle = PCA(2, svd_solver="full")
    wanted = oracle.fit_transform(x).T
    signs = np.sign(oracle.components_[[0, 1], np.abs(oracle.components_).argmax(1)])
    np.testing.assert_allclose(scores, wanted * signs[:, None], rtol=1e-7, atol=1e-7 * np.abs(wanted).max())
    np.testing.assert_allclose(explained, oracle.explained_variance_ratio_, rtol=1e-9)


def test_the_same_activations_give_no_component() -> None:
    scores, explained = first_components(np.full((20, 6), 0.1, np.float32))
    assert not scores.any()
    assert np.isnan(explained).all()


def test_every_layer_of_a_store_is_projected(store, tmp_path: Path) -> None:
    position = store.positions[-1]
    found = principal_components(store, position=position)
    held = np.flatnonzero(store.available("residual", position))
    assert found.examples["example"].tolist() == held.tolist()
    assert found.examples["label"].tolist() == store.examples["label"][held].tolist()
    assert found.scores.shape == (len(store.layers), 2, len(held))
    for k, layer in enumerate(store.layers):
        x = store.read("residual", layer=layer, position=position, examples=held).astype(np.float64)
        if np.ptp(x, 0).any():
            np.testing.assert_allclose(np.abs(found.scores[k]), np.abs(PCA(2, svd_solver="full").fit_transform(x).T), rtol=1e-3, atol=1e-4)
    found.save(tmp_path / "pca.zarr.zip")
    again = PrincipalComponents.load(tmp_path / "pca.zarr.zip")
    np.testing.assert_array_equal(again.scores, found.scores)
    np.testing.assert_array_equal(again.explained, found.explained)
    assert again.file_name == f"pca-{position}"
    assert len(found.to_frame()) == found.scores.shape[0] * len(held)
    assert f"of the variance at layer {store.layers[-1]} ({len(held)} examples)" in found.summary()
    assert len(found.figure().axes) == min(4, len(store.layers))


def test_what_cannot_be_projected_is_refused(store) -> None:
    with pytest.raises(InvalidInputError, match=r"expected a `position` of .*, found 'nowhere'"):
        principal_components(store, position="nowhere")
    with pytest.raises(TooFewExamplesError, match=r"at least 3 recorded examples .*, found 2"):
        principal_components(store, [0, 1])
