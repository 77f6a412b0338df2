"""Interventions against plain hooks on the stock model, one variant at a time."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.causal.design import EditStack  # noqa: E402
from stratascope.causal.erasure import Erasure  # noqa: E402
from stratascope.extract.run.capture import text_decoder, use_captured_attention  # noqa: E402
from stratascope.extract.run.intervention import DeviceEdits, InterventionRunner, Interventions  # noqa: E402
from stratascope.extract.run.knockout import tracing  # noqa: E402
from stratascope.extract.run.logits import Unembedding  # noqa: E402
from stratascope.extract.run.tail_pass import segments  # noqa: E402
from tests.extract.families import FAMILIES, IMAGE, build, example, left_padded  # noqa: E402

PAIR = (30, 40)
WINDOWS = ((0, 0), (1, 2), (2, 2), (4, 4))
"""The tiny models have four blocks; layer 4 is the output of the last."""
PARTS = (("final",), ("word", "image"))


class Bare:
    """What the runner needs of a `CaptureModel`."""

    def __init__(self, model: torch.nn.Module, decoder: torch.nn.Module) -> None:
        self.model, self.decoder, self.unembedding = model, decoder, Unembedding(model, decoder)


def drawn_edits(slots: int, d: int, seed: int, scale: float) -> EditStack:
    rng = np.random.default_rng(seed)
    pieces = []
    for k in range(slots):
        write, read = (rng.normal(size=(d, 1 + k % 2)) / d**0.5 for _ in range(2))
        pieces.append((Erasure(write, read, rng.normal(size=d)), scale * rng.normal(size=d) if k else None))
    return EditStack.of(pieces)


def hooked_logits(model, batch, places, edits: dict, window: tuple[int, int]) -> torch.Tensor:
    """Next-token logits of the stock model whose residual stream is edited by hooks before blocks, and after the last."""
    blocks = text_decoder(model).layers

    def edit(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        for name, tokens in places.items():
            hidden[0, tokens] = edits[name, layer](hidden[0, tokens])
        return hidden

    def before(layer: int):
        def hook(module, args, kwargs):
            if args:
                return (edit(layer, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(layer, kwargs["hidden_states"])}

        return hook

    def after(layer: int):
        return lambda module, args, output: (edit(layer, output[0]), *output[1:]) if isinstance(output, tuple) else edit(layer, output)

    handles = []
    for layer in range(window[0], window[1] + 1):
        if layer < len(blocks):
            handles.append(blocks[layer].register_forward_pre_hook(before(layer), with_kwargs=True))
        else:
            handles.append(blocks[-1].register_forward_hook(after(layer)))
    try:
        with torch.inference_mode():
            return model(**batch, use_cache=False, logits_to_keep=1).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def plain_edit(stack: EditStack, slot: int):
    write, read, centre, shift = (torch.from_numpy(a[slot]) for a in (stack.write, stack.read, stack.centre, stack.shift))
    return lambda x: x - (x - centre) @ read @ write.T + shift


@pytest.mark.parametrize("name", [n if n in ("llava", "qwen3_vl", "gemma3") else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_changes_equal_those_of_plain_hooks(name: str) -> None:
    """Every family: rotary positions, sliding windows, tokens that see later ones, soft caps, features added between blocks."""
    stock, ours = build(name, "eager"), build(name, "eager")
    batch = left_padded(name, [example(name, stock, 9, 0)])
    ids = batch["input_ids"][0].numpy()
    places = {"final": np.array([len(ids) - 1]), "word": np.array([len(ids) - 4]), "image": np.flatnonzero(ids == IMAGE)[:3]}
    d = text_decoder(stock).config.hidden_size
    stacks = {(position, layer): drawn_edits(3, d, layer, 0.3) for position in places for layer in range(5)}
    decoder = use_captured_attention(ours)
    runner = InterventionRunner(Bare(ours, decoder), PAIR, tokens=10_000)  # type: ignore[arg-type]
    with torch.inference_mode(), tracing(decoder.layers) as trace:
        ours(**batch, use_cache=False, logits_to_keep=1)
    device = torch.device("cpu")
    patches = np.random.default_rng(5).normal(size=(3, 4, 1, d)).astype(np.float32)  # layers 0, 1, 2, 4
    chosen = Interventions(PARTS, WINDOWS, {place: DeviceEdits.of(stack, device) for place, stack in stacks.items()}, sources=1)
    measured = runner.measure(trace, places, chosen, patches, 1e-3)
    untouched = hooked_logits(stock, batch, {}, {}, (0, -1))
    assert measured.logits == pytest.approx(untouched[list(PAIR)].numpy(), abs=1e-4)
    largest = 0.0
    for p, part in enumerate(PARTS):
        for w, window in enumerate(WINDOWS):
            for slot in range(4):
                edits = {(position, layer): plain_edit(stack, slot) for (position, layer), stack in stacks.items() if slot < 3}
                if slot == 3:
                    for k, layer in enumerate((0, 1, 2, 4)):
                        edits |= {(q, layer): lambda x, row=patches[i, k, 0]: torch.from_numpy(row) for i, q in enumerate(places)}
                logits = hooked_logits(stock, batch, {q: places[q] for q in part}, edits, window)
                expected = (logits - untouched)[list(PAIR)].numpy()
                assert measured.change[p, w, slot] == pytest.approx(expected, abs=1e-4, rel=1e-4), (part, window, slot)
                own, other = torch.log_softmax(untouched.double(), 0), torch.log_softmax(logits.double(), 0)
                assert measured.divergence[p, w, slot] == pytest.approx(float((own.exp() * (own - other)).sum()), abs=1e-4, rel=1e-3)
                largest = max(largest, float(np.abs(expected).max()))
    assert largest > 0.05, "a test in which nothing moves would show little"


def test_patching_an_example_with_itself_changes_no_bit() -> None:
    """In bfloat16, where another order of sums would show; a window of all layers, at a word and at the final token."""
    model = build("qwen2_5_vl", "eager").bfloat16()
    batch = {
        k: v.bfloat16() if v.is_floating_point() else v for k, v in left_padded("qwen2_5_vl", [example("qwen2_5_vl", model, 9, 0)]).items()
    }
    decoder = use_captured_attention(model)
    runner = InterventionRunner(Bare(model, decoder), PAIR, tokens=10_000)  # type: ignore[arg-type]
    with torch.inference_mode(), tracing(decoder.layers) as trace:
        model(**batch, use_cache=False, logits_to_keep=1)
    places = {"final": np.array([trace.length - 1]), "word": np.array([trace.length - 4])}
    own = np.stack([np.stack([trace.inputs[layer][0, t[0]].float().numpy() for layer in range(5)]) for t in places.values()])[:, :, None]
    parts = (("final",), ("word", "final"))
    windows = tuple((layer, layer) for layer in range(5))
    chosen = Interventions(parts, windows, {}, sources=1)
    same = runner.measure(trace, places, chosen, own, 0.1)
    for values in (same.change, same.collateral, same.divergence, same.others):
        assert not values.any()
    other = runner.measure(trace, places, chosen, own * 1.01, 0.1)
    assert np.abs(other.change).max() > 0
    absent = runner.measure(trace, {**places, "word": None}, chosen, own, 0.1)
    assert np.isnan(absent.change[1]).all()
    assert not np.isnan(absent.change[0]).any()


def test_passes_hold_every_variant_once_and_its_unedited_row() -> None:
    for slots, rows in ((5, 4), (5, 100), (1, 2), (7, 8)):
        made = list(segments(WINDOWS, slots, rows))
        taken = [(s.window, k) for batch in made for s in batch for k in range(s.slots.start, s.slots.stop)]
        assert taken == [(w, k) for w in range(len(WINDOWS)) for k in range(slots)]
        assert all(batch[-1].edited.stop <= max(rows, 2) for batch in made)
        for batch in made:
            places = [row for s in batch for row in (s.row, *range(s.edited.start, s.edited.stop))]
            assert places == list(range(len(places)))


def test_the_plan_counts_the_tokens_that_are_computed(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens times blocks of all reruns of an example with the built-in model, where no variant needs a second pass."""
    from stratascope.extract.plan.intervention_plan import bare_passes
    from stratascope.extract.run.session import ExtractionSession
    from stratascope.extract.run.tail_pass import TailPass

    session, computed = ExtractionSession(plan, batch_tokens=8192), []
    inner = TailPass._block

    def counted(self, block: int, hidden: torch.Tensor) -> torch.Tensor:
        computed.append(hidden.shape[0] * hidden.shape[1])
        return inner(self, block, hidden)

    monkeypatch.setattr(TailPass, "_block", counted)
    parts, windows, length = (("final",), ("object", "final")), ((0, 0), (3, 4), (5, 5)), len(plan.layouts[3].ids)
    stack = DeviceEdits.of(drawn_edits(4, plan.shape.hidden, 0, 0.1), torch.device("cpu"))
    chosen = Interventions(parts, windows, {(name, layer): stack for name in ("final", "object") for layer in range(7)})
    runner = InterventionRunner(session.model, session.request.choices, tokens=8192)
    image = session.load(3).prepared
    assert image is not None
    trace = runner.trace(session.batch([3], image.tensors))
    runner.measure(trace, {name: plan.position_tokens(3, name) for name in ("final", "object")}, chosen, None, 1e-3)
    assert 1 + sum(computed) / length / plan.shape.layers == pytest.approx(bare_passes(plan, [3], parts, windows, 4))
