"""Write the table of model types into docs/families.md, from proofs that it runs: python docs/site/make_families.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

BEGIN, END = "<!-- types: written by docs/site/make_families.py -->", "<!-- /types -->"
PAGE = Path(__file__).parents[1] / "families.md"


def rows() -> list[tuple[str, str, str, str]]:
    """Type, what is captured, blocks with softmax attention, grid or reason; runs every proof."""
    from stratascope.extract.families.general_family import RASTER, REFUSED
    from stratascope.extract.families.model_families import FAMILIES
    from tests.extract.general.proof import prove
    from tests.extract.general.types import RESIDUALS, TYPES, UNPROVED

    made = []
    for name, tiny in {**TYPES, **RESIDUALS}.items():
        proved = prove(name, tiny, rows=name in TYPES)
        blocks = "all" if len(proved.attending) == proved.blocks else "some" if proved.attending else "none"
        grid = "rule of its own" if name in FAMILIES else "yes" if name in RASTER else "no"
        kept = "residual stream, answers, attention" if proved.attending else "residual stream, answers"
        made.append((name, kept, blocks + ("" if proved.causal else ", not causal"), grid))
    made += [(name, "no proof", "", reason) for name, reason in UNPROVED.items()]
    made += [(name, "refused", "", reason) for name, reason in REFUSED.items()]
    return sorted(made)


def table(made: list[tuple[str, str, str, str]]) -> str:
    """The table in Markdown."""
    head = "| `model_type` | proved | blocks with softmax attention | grid of image cells, or reason |\n|---|---|---|---|\n"
    full = sum("attention" in kept for _, kept, _, _ in made)
    part = sum("residual" in kept for _, kept, _, _ in made)
    counts = f"{full} of {len(made)} types with attention, {part} with residual stream and answers.\n\n"
    return counts + head + "\n".join(f"| `{name}` | {kept} | {blocks} | {grid} |" for name, kept, blocks, grid in made) + "\n"


def main() -> None:
    """Replace the table in the page."""
    warnings.filterwarnings("ignore")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows())}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
