"""Near-duplicates by perceptual hash: recompressed, resized, brighter and mirrored copies are found, distinct images are not merged."""

from __future__ import annotations

import io
from collections.abc import Callable

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.fft import dctn

from stratascope.datasets.scenes import render, sample_scene
from stratascope.store.io.example_identity import HASHED_SIDE, NEAR_BITS, example_digests, image_groups, near_duplicates, perceptual_hash

COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: recompressed(image, 40),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "mirrored": ImageOps.mirror,
    "mirrored jpeg": lambda image: recompressed(ImageOps.mirror(image), 60),
}


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.LANCZOS))


def scene(number: int) -> Image.Image:
    rng = np.random.default_rng([3, number])
    return Image.fromarray(render(sample_scene(rng), rng, 1))


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [scene(k) for k in range(512)]


def test_the_hash_is_the_signs_of_the_cosine_transform(scenes: list[Image.Image]) -> None:
    signs = (dctn(grey(scenes[0]).astype(float), norm="ortho")[:24, :24] > 0).ravel()
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(perceptual_hash(grey(scenes[0]))), np.uint8))
    np.testing.assert_array_equal(bits, signs)


def test_distinct_scenes_are_not_merged(scenes: list[Image.Image]) -> None:
    hashes = [perceptual_hash(grey(image)) for image in scenes]
    assert len(set(near_duplicates(tuple(hashes)))) == len(scenes)
    bits = np.array([np.unpackbits(np.frombuffer(bytes.fromhex(one), np.uint8)) for one in hashes])[:, 1:] * 2.0 - 1
    distance = (575 - bits @ bits.T) / 2
    assert distance[np.triu_indices(len(scenes), 1)].min() > 2 * NEAR_BITS


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(scenes: list[Image.Image], name: str) -> None:
    some = scenes[:40]
    hashes = [perceptual_hash(grey(image)) for image in (*some, *map(COPIES[name], some))]
    found = near_duplicates(tuple(hashes))
    assert list(found[:40]) == list(found[40:])
    assert len(set(found)) == 40


def test_groups_are_those_of_all_pairs() -> None:
    """Chains of hashes about as far apart as near-duplicates may be, and hashes without a bit in common; networkx joins the pairs."""
    rng = np.random.default_rng(0)
    bits = np.repeat(rng.random((60, 576)) < 0.5, 5, 0)
    for k in range(1, len(bits)):
        if k % 5:
            bits[k] = bits[k - 1]
            bits[k, rng.choice(np.arange(1, 576), int(rng.integers(NEAR_BITS - 4, NEAR_BITS + 5)), replace=False)] ^= True
    odd = np.arange(576) % 24 % 2 == 1
    bits[3::7] ^= odd
    bits[:, 0] = rng.random(len(bits)) < 0.5  # the mean, which does not count
    graph = nx.Graph()
    graph.add_nodes_from(range(len(bits)))
    for a in range(len(bits)):
        for b in range(a):
            if min((bits[a] ^ bits[b])[1:].sum(), (bits[a] ^ bits[b] ^ odd)[1:].sum()) <= NEAR_BITS:
                graph.add_edge(a, b)
    found = np.array(near_duplicates(tuple(np.packbits(one).tobytes().hex() for one in bits)))
    expected = {frozenset(part) for part in nx.connected_components(graph)}
    assert {frozenset(np.flatnonzero(found == group).tolist()) for group in set(found.tolist())} == expected
    assert 60 < len(expected) < 300


def test_plain_pictures_have_no_hash_and_no_duplicates() -> None:
    assert perceptual_hash(np.full((64, 64), 128)) == ""
    assert near_duplicates(("", "", "")) == (0, 1, 2)


def several_images(names: np.ndarray, columns: int) -> pd.DataFrame:
    """A table of examples with images of these names; a name's hash is its first letter."""
    table = pd.DataFrame({"caption": "", "relation": "", "label": 1}, index=range(len(names)))
    for k in range(columns):
        prefix = "image" if k == 0 else f"image_{k + 1}"
        table[prefix] = names[:, k]
        table[f"{prefix}_sha256"] = [name[0] for name in names[:, k]]
        table[f"{prefix}_phash"] = ""
    return table


@pytest.mark.parametrize("seed", range(4))
def test_examples_that_share_any_image_are_in_one_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = np.array([[f"{chr(97 + k)}{rng.integers(2)}" for k in row] for row in rng.integers(0, 90, (14, 3))], object)
    found = image_groups(several_images(names, 3))
    graph = nx.Graph((f"example {k}", name[0]) for k, row in enumerate(names) for name in row)
    assert 1 < nx.number_connected_components(graph) < 14
    for part in nx.connected_components(graph):
        members = [k for k in range(14) if f"example {k}" in part]
        first = min(name for k in members for name in names[k])
        assert set(found.labels[members]) == {first}
    assert found.names == len(set(names.ravel()))


def test_a_further_image_is_part_of_an_examples_identity() -> None:
    names = np.array([["a0", "b0"], ["a0", "c0"], ["a0", "b0"]], object)
    digests = example_digests(several_images(names, 2))
    assert digests[0] == digests[2] != digests[1]
    plain = several_images(names, 1)
    assert len(set(example_digests(plain))) == 1
    kept = plain.assign(image_2=names[:, 1])  # a column like any other, without hashes
    assert example_digests(kept).tolist() == example_digests(plain).tolist()
    assert image_groups(kept).labels.tolist() == ["a0"] * 3
