"""Card of a store in a repository of the Hugging Face Hub: model, data, prompt, arrays, how to open it, and a figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from stratascope.errors import InvalidInputError
from stratascope.figures.gallery import Tile, draw_gallery
from stratascope.report.report_file import image_cells
from stratascope.store import ActivationStore, condition_of
from stratascope.store.io.hub import HubAddress
from stratascope.store.io.overview import bytes_text

README = "README.md"
TILES = 4
"""Examples in the figure."""
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_IMAGES = "Captions, thumbnails and labels come from the data set and keep its licence."


def card_documents(
    store: ActivationStore, address: str, *, licence: str = "unknown", arrays: Collection[str] | None = None
) -> Callable[[Callable[[str], bytes | None]], dict[str, bytes]]:
    """What a copy to the Hub adds beside a store: the card, with a section for the store, and its figure.

    A card that is there keeps its header and all other text: only the store's own section is replaced, or added at the end.

    Parameters
    ----------
    store
        The store that is copied.
    address
        Of the copy, such as hf://datasets/USER/NAME/run.zarr.
    licence
        Of the repository, as the Hub abbreviates it, such as cc-by-4.0.
    arrays
        Names of the arrays that are copied; all by default.

    Returns
    -------
    callable
        Given how to read a file of the repository (None where there is none): path in the repository -> bytes.

    Raises
    ------
    InvalidInputError
        If the licence is no identifier of the Hub's kind.
    StoreError
        If the store is damaged.
    """
    if not _LICENCE.fullmatch(licence):
        raise InvalidInputError(f"licence: expected an identifier of the Hub such as cc-by-4.0, found {licence!r}")
    found = HubAddress.parse(address)
    figure = _figure(store) if arrays is None or "thumbnail" in arrays else None
    picture = f"{found.path}.png"
    section = _section(store, found, picture if figure else "", arrays)

    def documents(read: Callable[[str], bytes | None]) -> dict[str, bytes]:
        before = read(README)
        text = before.decode("utf-8", "replace") if before else _header(store, licence)
        return {README: with_section(text, found.path, section).encode(), **({picture: figure} if figure else {})}

    return documents


def with_section(text: str, name: str, section: str) -> str:
    """A card with the section of a store replaced, or added at the end.

    >>> with_section("# Mine", "run.zarr", "new").splitlines()[2:]
    ['<!-- stratascope: run.zarr -->', 'new', '<!-- /stratascope: run.zarr -->']
    """
    begin, end = f"<!-- stratascope: {name} -->", f"<!-- /stratascope: {name} -->"
    whole = f"{begin}\n{section.strip()}\n{end}"
    before, there, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if there and closed:
        return f"{before}{whole}{after}"
    return f"{text.rstrip()}\n\n{whole}\n"


def _header(store: ActivationStore, licence: str) -> str:
    model = _model(store).get("name")
    title = f"Activations of {PurePosixPath(str(model)).name}" if model else "Activations"
    tags = "".join(f"- {tag}\n" for tag in ("interpretability", "vision-language", "activations", "zarr", "stratascope"))
    return f"---\nlicense: {licence}\npretty_name: {_plain(title)}\ntags:\n{tags}viewer: false\n---\n\n# {_plain(title)}\n"


def _model(store: ActivationStore) -> Mapping[str, Any]:
    made = store.provenance.get("model")
    return made if isinstance(made, Mapping) else {"name": made}


def _section(store: ActivationStore, address: HubAddress, picture: str, arrays: Collection[str] | None) -> str:
    layout, provenance = store.layout, store.provenance
    prompt, data = ({} if not isinstance(part := provenance.get(name), Mapping) else part for name in ("prompt", "data"))
    model, libraries = _model(store), provenance.get("libraries") or {}
    name = PurePosixPath(str(model.get("name") or "not stated")).name if str(model.get("name")).startswith("/") else model.get("name")
    files = data.get("examples")
    facts = {
        "Model": ", ".join(str(value) for value in (name or "not stated", model.get("revision"), model.get("dtype")) if value),
        "Condition": "imported activations" if "imported" in provenance else condition_of(provenance),
        "Examples": f"{layout.examples:,}" + ("" if store.complete else f", of which {_written(store):,} are recorded so far"),
        "Data": ", ".join(files) if isinstance(files, Mapping) and files else "not stated",
        "Prompt": prompt.get("text") or "not stated",
        "Positions": ", ".join(layout.positions),
        "Made with": f"Stratascope {libraries.get('stratascope', '(version not stated)')}, {provenance.get('created', 'date not stated')}",
        "Fingerprint": store.fingerprint(),
    }
    specs = [spec for spec in layout.arrays() if spec.by_block and (arrays is None or spec.name in (*arrays, "answer_logits", "status"))]
    lines = [
        f"## {_plain(address.path)}",
        "",
        *([f"![Examples, coloured by the final token's attention]({quote(picture)})", ""] if picture else []),
        "| | |",
        "|---|---|",
        *(f"| {label} | {_cell(value)} |" for label, value in facts.items()),
        "",
        "| array | dimensions | shape | type | before compression |",
        "|---|---|---|---|---|",
        *(
            f"| {spec.name} | {', '.join(spec.dims)} | {' x '.join(map(str, spec.shape))} | {spec.dtype} | {bytes_text(spec.raw_bytes)} |"
            for spec in specs
        ),
        "",
        "```python",
        "from stratascope.store import ActivationStore",
        "",
        f'store = ActivationStore.open("{address.url}")',
        "```",
        "",
        "```sh",
        f"stratascope info {address.url}",
        f"stratascope pull {address.url} {PurePosixPath(address.path).name}",
        "```",
        "",
        _IMAGES,
    ]
    return "\n".join(lines)


def _written(store: ActivationStore) -> int:
    return sum(len(store.layout.block_examples(int(block))) for block in np.flatnonzero(store.written))


def _figure(store: ActivationStore) -> bytes | None:
    """PNG of some examples with the attention of a middle block; None where the store holds no thumbnails."""
    held = {spec.name for spec in store.layout.arrays()}
    if "thumbnail" not in held:
        return None
    recorded = np.flatnonzero(store.available("thumbnail"))
    if not recorded.size:
        return None
    chosen = recorded[np.unique(np.linspace(0, recorded.size - 1, TILES).astype(int))]
    layers = store.layout.attention_layers
    tiles = []
    for number in map(int, chosen):
        cells = None
        if "attention_mean" in held and store.available("attention_mean")[number]:
            weights = store.read("attention_mean", layer=layers[len(layers) // 2], examples=number)
            cells = image_cells(store, weights[: int(store.n_tokens[number])].astype(np.float64), number)
        caption = str(store.examples["caption"].iloc[number]) if "caption" in store.examples else ""
        shown = np.zeros((1, 1)) if cells is None or not np.isfinite(cells).all() else cells
        tiles.append(Tile(store.thumbnail(number), shown, caption[:60]))
    drawn = BytesIO()
    draw_gallery(tiles, columns=TILES).savefig(drawn, format="png", dpi=150)
    return drawn.getvalue()


def _plain(text: str) -> str:
    """Text without signs that Markdown, HTML or YAML read as their own."""
    return re.sub(r"[^\w .,+()/-]", " ", text)


def _cell(text: object) -> str:
    """Text of a table's cell, shown as it is."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if re.search(r"[<>{}\[\]*_#&]", plain) else plain
