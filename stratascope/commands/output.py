"""Output of commands: save results, draw figures, print text or JSON."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stratascope.commands.options import OUTPUT
from stratascope.commands.terminal import echo
from stratascope.store import choice_text, chosen_examples
from stratascope.store.io.recorded_examples import written_examples

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from stratascope.results.result import Result
    from stratascope.store import ActivationStore

QUIET, NORMAL, VERBOSE = -1, 0, 1


@dataclass
class Output:
    """Where a command's results go, and how much it prints."""

    folder: Path
    as_json: bool = False
    verbosity: int = NORMAL
    _records: list[dict[str, Any]] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)
    _figures: list[Path] = field(default_factory=list)
    _tables: list[Path] = field(default_factory=list)
    _pages: list[Path] = field(default_factory=list)

    def note(self, *lines: str) -> None:
        """Lines about the run as a whole, printed before the results."""
        self._lines += lines

    def add(self, result: Result, *, store: ActivationStore | None = None, name: str = "", draw: bool = True, summary: bool = True) -> Path:
        """Save a result and its figure.

        Parameters
        ----------
        result
            See `results.saved_files.save_with_figure`.
        store
            What it was computed from, for figures that show images.
        name
            The files' name without ending; the result's own by default.
        draw
            Whether its figure is drawn as NAME.png.
        summary
            Whether its summary is printed.

        Returns
        -------
        pathlib.Path
            The results file.
        """
        from stratascope.results.saved_files import save_with_figure

        path, drawn = save_with_figure(result, self.folder, store=store, name=name, draw=draw)
        self._figures += [drawn] if drawn else []
        text = result.summary() if summary else ""
        if summary and store is not None:
            self.note(*selection_lines(store, result))
        self._records.append(
            {
                "file": str(path),
                "kind": result.kind,
                "options": dict(result.options),
                "summary": text,
                "table": result.to_frame().to_dict("records") if self.as_json else None,
            }
        )
        return path

    @property
    def quiet(self) -> bool:
        """Whether nothing but the result is to be printed."""
        return self.as_json or self.verbosity == QUIET

    def draw(self, figure: Figure, name: str) -> None:
        """Save a figure of several results as NAME.png in the folder."""
        from stratascope.figures.drawing import save_figure

        self._figures.append(save_figure(figure, self.folder / f"{name}.png"))

    def page(self, path: Path) -> None:
        """Name a page that was written."""
        self._pages.append(path)

    def remove(self, *name: str | None) -> None:
        """Remove a results file of an earlier run, and say so."""
        from stratascope.results.locations import ENDING, file_name

        stale = self.folder / f"{file_name(*name)}{ENDING}"
        if stale.exists():
            stale.unlink()
            self.note(f"removed {stale.name}, which an earlier run had made")

    def table(self, table: pd.DataFrame, name: str) -> None:
        """Save a table as NAME.csv in the folder, for R or a spreadsheet."""
        from stratascope.store.io.durable import write_output

        path = self.folder / f"{name}.csv"
        write_output(path, lambda file: file.write(table.to_csv(index=False, float_format="%.6g").encode()))
        self._tables.append(path)

    def finish(self) -> None:
        """Print what the command computed: text, or one JSON object with --json."""
        if self.as_json:
            files: dict[str, Any] = {"pages": self._pages, "figures": self._figures, "tables": self._tables, "folder": self.folder}
            print_json({"notes": self._lines, "results": self._records, **files})
            return
        if self.verbosity == QUIET:
            return
        texts: Iterable[str] = [*self._lines, *(record["summary"] for record in self._records if record["summary"])]
        for text in texts:
            echo(text)
        for path in self._pages:
            echo(f"page {path}, {path.stat().st_size / 1e3:.0f} kB, one file without external resources")
        for path in self._tables:
            echo(f"table {path}")
        for path in self._figures:
            echo(f"figure {path}")
        if self.verbosity >= VERBOSE:
            for record in self._records:
                echo(f"file {record['file']}")
        echo(f"results in {self.folder}")


def print_record(record: Mapping[str, Any], lines: Sequence[str], *, as_json: bool, verbosity: int, details: Sequence[str] = ()) -> None:
    """Print the outcome of a command that computes no result.

    Parameters
    ----------
    record
        Printed with --json.
    lines
        Printed otherwise, unless --quiet.
    as_json, verbosity
        As of `verbosity_options`.
    details
        Lines that --verbose adds.
    """
    if as_json:
        print_json(record)
    elif verbosity > QUIET:
        for line in (*lines, *(details if verbosity >= VERBOSE else ())):
            echo(line)


def selection_lines(store: ActivationStore, result: Result) -> list[str]:
    """A line that names the part of the store's examples that a result is of; none for all of them."""
    total, count = store.layout.examples, result.example_count
    if count is None and result.only:
        count = int(chosen_examples(store, result.only).sum())
    unwritten = total - int(written_examples(store).sum())
    if not result.only and (count in (None, total) or (result.selects_examples and not unwritten)):
        return []
    why = f" ({unwritten:,} are not written yet; finish the extraction)" if unwritten else ""
    return [f"{f'only {choice_text(result.only)}:' if result.only else 'from'} {count:,} of {total:,} examples{why}"]


def print_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object; numbers that are not finite become null."""
    echo(json.dumps(_finite(json.loads(json.dumps(record, default=_plain))), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else list(value) if isinstance(value, tuple | set) else str(value)


def verbosity_options(command: Callable[..., Any], verbose_help: str = "Also name every file that is written.") -> Callable[..., Any]:
    """`--json`, `-q` and `-v`; the command receives `as_json` and `verbosity`."""

    @functools.wraps(command)
    def wrapped(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        if quiet and verbose:
            raise click.UsageError("expected -q or -v, found both")
        return command(*args, verbosity=QUIET if quiet else VERBOSE if verbose else NORMAL, **kwargs)

    for option in (
        click.option("-v", "--verbose", is_flag=True, help=verbose_help),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    ):
        wrapped = option(wrapped)
    return wrapped


def results_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """`-o/--out`, `--json`, `-q`, `-v` of a command whose first argument is a store; the command receives `output` and ends with it.

    The command adds results to `output`; they are printed when it returns.
    """

    @functools.wraps(command)
    def wrapped(*, store: str, out: Path | None, as_json: bool, verbosity: int, **kwargs: Any) -> None:
        from stratascope.results.locations import results_folders

        output = Output(out or results_folders(store)[0], as_json, verbosity)
        command(store=store, output=output, **kwargs)
        output.finish()

    text = "Folder of results and figures; default: STORE-results beside the store."
    return click.option("-o", "--out", type=OUTPUT, help=text)(verbosity_options(wrapped))
