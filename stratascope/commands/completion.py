"""Shell completion of task, position, array and figure names, from the store or results on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from stratascope.addresses import is_address

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

TASKS = ("truth", "choice", "relation", "category", "answer", "geometry")
"""Tasks of every store, besides the columns of its examples."""
NO_TASKS = {"id", "image", "caption"}
"""Columns that make no task."""
SYNONYMS = (("--task", "--tasks"), ("--position", "--positions"), ("--array", "--arrays"))
"""Spellings of one option; a command with one of them accepts both."""


class Completed(click.ParamType):  # type: ignore[type-arg]
    """Text whose values the shell completes.

    Parameters
    ----------
    names
        Gives the possible values from the line so far.
    several
        Whether values are comma-separated.
    """

    name = "text"

    def __init__(self, names: Callable[[click.Context], Iterable[str]], *, several: bool = False) -> None:
        self.names = names
        self.several = several

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Values that begin with the word; none where the store cannot be read."""
        before, comma, word = incomplete.rpartition(",") if self.several else ("", "", incomplete)
        try:
            found = sorted(set(self.names(ctx)) - set(before.split(",")))
        except Exception:  # a completion never fails; the command itself names the error
            return []
        return [CompletionItem(f"{before}{comma}{name}") for name in found if name.startswith(word) and name.isprintable()]


class StorePath(click.ParamType):  # type: ignore[type-arg]
    """A store by path or address; the shell completes paths."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files and folders, by the shell itself."""
        return [CompletionItem(incomplete, type="file")]


def complete_values(command: click.Command) -> click.Command:
    """Let the shell complete the values of a command, and the command accept every spelling of its options."""
    for param in command.params:
        if isinstance(param, click.Option):
            for spellings in SYNONYMS:
                if set(spellings) & set(param.opts):
                    param.opts += [spelling for spelling in spellings if spelling not in param.opts]
            if "--out" in param.opts and "-o" not in param.opts:
                param.opts.insert(0, "-o")
        if param.type is click.STRING and (kind := _kind(command, param)) is not None:
            param.type = kind
    return command


def _kind(command: click.Command, param: click.Parameter) -> click.ParamType | None:  # type: ignore[type-arg]
    if isinstance(param, click.Argument):
        if command.name == "figure" and param.name == "name":
            return Completed(_figures)
        return StorePath() if param.name in ("store", "source", "a", "b", "results") else None
    found = COMPLETED.get(param.name or "")
    return Completed(found[0], several=found[1]) if found else None


def _paths(ctx: click.Context) -> Iterator[Path]:
    """Paths on this machine among the arguments of the line, whether click assigned them (`params`) or not (`args`)."""
    words = [*(ctx.params.get(param.name or "") for param in ctx.command.params if isinstance(param, click.Argument)), *ctx.args]
    for word in (one for group in words for one in (group if isinstance(group, tuple) else (group,))):
        if word and not is_address(str(word)) and Path(word).exists():
            yield Path(word)


def _is_store(path: Path) -> bool:
    from stratascope.results.locations import ENDING

    return (path / "zarr.json").is_file() or (path.suffix == ".zip" and not path.name.endswith(ENDING))


def _stores(ctx: click.Context) -> Iterator[ActivationStore]:
    from stratascope.store import ActivationStore

    for path in filter(_is_store, _paths(ctx)):
        yield ActivationStore.open(path)


def _of_curves(ctx: click.Context, field: str) -> set[str]:
    """Tasks or positions of probe results: of the results on the line, and those beside a store on the line."""
    from stratascope.results.file import result_head
    from stratascope.results.locations import ENDING, results_folders

    found: set[str] = set()
    for path in _paths(ctx):
        for folder in results_folders(path) if _is_store(path) else [path]:
            for file in [folder] if folder.is_file() else sorted(folder.glob(f"probe-*{ENDING}")):
                name = ((result_head(file) or {}).get("attributes") or {}).get(field)
                found |= {name} if isinstance(name, str) and name else set()
    return found


def _tasks(ctx: click.Context) -> Iterable[str]:
    if ctx.info_name == "figure":
        return _of_curves(ctx, "task")
    if ctx.info_name == "patches":
        from stratascope.probe.tasks.image_cells import CELL_TASKS

        return CELL_TASKS
    return {name for store in _stores(ctx) for name in (*TASKS, *store.examples.columns) if name not in NO_TASKS}


def _positions(ctx: click.Context) -> Iterable[str]:
    if ctx.info_name == "figure":
        return _of_curves(ctx, "position")
    if ctx.info_name in ("plan", "extract"):
        from stratascope.extract.plan.settings import GROUPS, POSITIONS

        return {*GROUPS, *POSITIONS}
    return {name for store in _stores(ctx) for name in store.layout.positions}


def _arrays(ctx: click.Context) -> Iterable[str]:
    return {spec.name for store in _stores(ctx) for spec in store.layout.arrays()}


def _records(_: click.Context) -> Iterable[str]:
    from stratascope.extract.plan.settings import RECORDS

    return RECORDS


def _figures(_: click.Context) -> Iterable[str]:
    from stratascope.report.figure_registry import FIGURES

    return FIGURES


COMPLETED: dict[str, tuple[Callable[[click.Context], Iterable[str]], bool]] = {
    "tasks": (_tasks, True),
    "task": (_tasks, False),
    "positions": (_positions, True),
    "position": (_positions, False),
    "arrays": (_arrays, True),
    "array": (_arrays, False),
    "record": (_records, True),
}
"""Option -> names that it takes, and whether they are comma-separated."""
