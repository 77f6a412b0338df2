"""Every type of the table in docs/families.md: a tiny random model captured against eager attention."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES  # noqa: E402

from stratascope.extract.families.general_family import PATCHED, RASTER, REFUSED  # noqa: E402
from stratascope.extract.run import attention_function  # noqa: E402
from tests.extract.general.proof import misplaced_cells, misplaced_patches, prove  # noqa: E402
from tests.extract.general.types import RESIDUALS, TYPES, UNPROVED  # noqa: E402

FEW = ("aya_vision", "ernie4_5_vl_moe", "lfm3_vl", "mistral3", "qwen3_5", "shieldgemma2")
"""A logit scale, a mixture of experts, convolutions, rows of image tokens, linear attention, bidirectional image tokens."""


@pytest.mark.parametrize("name", FEW)
def test_representative_types(name: str) -> None:
    proved = prove(name, TYPES[name])
    assert proved.causal == (name != "shieldgemma2")
    assert proved.attending == {"qwen3_5": (3,), "lfm3_vl": (2,)}.get(name, (0, 1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TYPES) - set(FEW)))
def test_types(name: str) -> None:
    assert prove(name, TYPES[name]).attending


@pytest.mark.parametrize("name", RESIDUALS)
def test_types_without_softmax_attention_over_all_tokens(name: str) -> None:
    assert prove(name, RESIDUALS[name], rows=False).attending == ()


def test_every_type_of_transformers_is_in_the_table() -> None:
    known = [set(TYPES), set(RESIDUALS), set(UNPROVED), set(REFUSED)]
    assert set().union(*known) == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert sum(map(len, known)) == len(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.startswith(("muse", "paddle")) else []) for name in sorted(RASTER)]
)
def test_a_cell_of_the_grid_is_its_place_in_the_image(name: str) -> None:
    assert not misplaced_cells(name, TYPES[name])


@pytest.mark.parametrize("name", sorted(PATCHED - {"mistral3"}))  # which test_tower_maps.py has
def test_an_image_token_is_made_of_the_patches_of_its_square(name: str) -> None:
    assert not misplaced_patches(name, TYPES[name])


@pytest.mark.parametrize("name", ["kimi_k25", "lfm3_vl"])
def test_images_that_are_padded_or_mixed_over_cells_have_no_grid(name: str) -> None:
    assert misplaced_cells(name, TYPES[name])
    assert name not in RASTER


def test_a_proof_fails_for_wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_function.attention_weights

    def wrong(query, key, mask, scaling, positions, softcap=None):
        return right(query, key, mask, scaling * 1.001, positions, softcap)

    monkeypatch.setattr(attention_function, "attention_weights", wrong)
    with pytest.raises(AssertionError, match="rows of attention block"):
        prove("mistral3", TYPES["mistral3"])
