"""Every type of the table in docs/families.md: a tiny random model captured against eager attention."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from stratascope.extract.run import attention_function  # noqa: E402
from tests.extract.general.proof import prove  # noqa: E402
from tests.extract.general.types import TYPES  # noqa: E402

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


def test_a_proof_fails_for_wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_function.attention_weights

    def wrong(query, key, mask, scaling, positions, softcap=None):
        return right(query, key, mask, scaling * 1.001, positions, softcap)

    monkeypatch.setattr(attention_function, "attention_weights", wrong)
    with pytest.raises(AssertionError, match="rows of attention block"):
        prove("mistral3", TYPES["mistral3"])
