"""Where a number that a page cites comes from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """Where a number comes from."""

    file: str
    """Name of the results file, or of the store."""
    table: str = ""
    """Table, array or attribute in it."""
    detail: str = field(default="", compare=False)
    """Which row or mean; told with the number, but no footnote of its own."""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.file, self.table, self.detail)))
