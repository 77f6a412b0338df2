"""Commands that show results: figure, report, view."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import click

from stratascope.addresses import is_address, without_secrets
from stratascope.commands import options
from stratascope.commands.command_line import command_lines
from stratascope.commands.output import print_record, verbosity_options
from stratascope.commands.terminal import bar, echo, open_store
from stratascope.errors import InvalidInputError


@click.command(short_help="Write all results of a store to one HTML page.")
@click.argument("store")
@click.argument("results", nargs=-1, type=options.RESULTS_INPUT)
@click.option("-o", "--out", type=options.OUTPUT, help="HTML file to write; default: STORE-report.html beside the store.")
@click.option("--title", default="", help="Title of the page; default: from the model and the first task.")
@verbosity_options
def report_command(store: str, results: tuple[Path, ...], out: Path | None, title: str, as_json: bool, verbosity: int) -> None:
    """Write all results of a store to one HTML file without external resources.

    RESULTS are files or folders; default: STORE-results, and the folder `results` beside the store.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope report demo/original.zarr -o report.html
    """
    from stratascope.report.report_file import write_report
    from stratascope.results.locations import beside

    with bar("report", "files") as progress:
        report = write_report(
            open_store(store),
            results,
            out or beside(store, "-report.html"),
            where=without_secrets(store),
            title=title,
            command_line=command_lines(),
            progress=progress,
        )
    files = [str(found.path) for found in (*report.results.own, *report.results.beside)]
    record = {"page": report.path, "results": files, "results_of_other_stores": report.results.others}
    record["results_of_earlier_runs"] = [found.name for found in report.results.earlier]
    print_record(record, [report.summary()], as_json=as_json, verbosity=verbosity, details=[f"results file {name}" for name in files])


@click.command(short_help="Draw one figure by name.")
@click.argument("name", required=False)
@click.argument("results", nargs=-1, type=options.STORE_OR_RESULTS, metavar="[STORE|RESULTS]...")
@click.option("-o", "--out", type=options.OUTPUT, help="File to write: .pdf, .svg or .png; default: NAME.pdf.")
@click.option("--list", "listed", is_flag=True, help="List all figures, with the commands that compute their results.")
@click.option("--task", "--tasks", "task", help="Task of a probe figure; default: truth, or the first task.")
@click.option("--position", help="Position of a probe figure; default: all positions, or the final token.")
@click.option("--width", type=float, metavar="INCHES", help="Width of the figure; default: 3.4, one column of a paper.")
@click.option("--height", type=float, metavar="INCHES", help="Height of the figure; default: the figure's own.")
@verbosity_options
def figure_command(
    name: str | None,
    results: tuple[str, ...],
    out: Path | None,
    listed: bool,
    task: str | None,
    position: str | None,
    width: float | None,
    height: float | None,
    as_json: bool,
    verbosity: int,
) -> None:
    """Draw one figure from the results of a store, or from results files and folders.

    NAME is one of --list, or a file that a command wrote, such as rollout, probe-truth or demo/results/share.png.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope figure curves demo/original.zarr -o curves.pdf
    """
    from stratascope.report.figure_drawing import FigureSelection
    from stratascope.report.figure_registry import FIGURES, draw_named
    from stratascope.results.locations import ENDING, file_name

    if listed:
        wide = max(map(len, FIGURES))
        lines = [f"{f.name:<{wide}}  {f.shows}\n{'':<{wide}}  from {f.command}" for f in FIGURES.values()]
        record: dict[str, Any] = {"figures": {f.name: {"shows": f.shows, "kind": f.kind, "command": f.command} for f in FIGURES.values()}}
        print_record(record, lines, as_json=as_json, verbosity=verbosity)
        return
    if name is None or not results:
        raise InvalidInputError(
            "expected the name of a figure and a store or results, such as: stratascope figure curves demo/original.zarr"
        )
    position = None if position == "all" else position
    file = Path(name).name
    for ending in (ENDING, ".png", ".csv"):
        file = file.removesuffix(ending)
    path, drawn = draw_named(name, results, out or Path(f"{file}.pdf"), task=task, position=position, width=width, height=height)
    left_out = [f"left out: {line}" for line in drawn.left_out]
    if (found := FigureSelection(task, position).resolved(drawn).task) != task:
        other = f"; of all examples: stratascope figure {file_name('probe', task)}" if task in drawn.tasks else ""
        left_out.append(f"task: {found}{other}")
    record = {"figure": path, "results_of_other_stores": drawn.others, "results_of_earlier_runs": [f.name for f in drawn.earlier]}
    print_record(record, [*left_out, f"figure {path}"], as_json=as_json, verbosity=verbosity)


@click.command(short_help="Browse examples in the web viewer.")
@click.argument("store")
@click.option(
    "--results",
    type=options.ResultPath(exists=True, file_okay=False),
    help="Folder of results; default: STORE-results, or the folder `results` beside the store.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Local port; default: any free one.")
@click.option("--no-browser", is_flag=True, help="Print the address without opening a browser.")
@click.option(
    "-o",
    "--out",
    "--export",
    "export",
    type=options.OutputPath(file_okay=False),
    metavar="FOLDER",
    help="Write the page to a folder for a web host, instead of serving it.",
)
@verbosity_options
def view_command(store: str, results: Path | None, port: int, no_browser: bool, export: Path | None, as_json: bool, verbosity: int) -> None:
    """Browse a store in the web viewer: image, tokens, heads and layers of any example. Ctrl-C ends the server.

    Results of another store are refused; curves of a baseline of the same examples are shown.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope view demo/original.zarr --results demo/results
    """
    from stratascope.report.viewer import export_page, serve_store
    from stratascope.report.viewer.address import check_address, check_page_can_ask
    from stratascope.report.viewer.files import files_of
    from stratascope.report.viewer.page_files import results_shown
    from stratascope.results.locations import results_folders
    from stratascope.store.io.hub import HubAddress

    if store.startswith("hf://"):
        store = HubAddress.parse(store).web()
    if is_address(store):
        check_page_can_ask(store)
    default = [folder for folder in results_folders(store) if not is_address(store) and folder.is_dir()]
    given, results = results, results or next(iter(default), None)
    shown = None
    if results is not None:
        shown, others = results_shown(results, open_store(store), shared=given is None)
        if others:
            echo(f"{results}: {others} results files of other stores are not shown", err=True)
    if export is not None:
        if not is_address(store):
            files_of(Path(store))
        page = export_page(export, store, results, shown)
        line = f"{page}: put the folder on any web host that answers Range requests (see docs/viewer.md)"
        print_record({"page": page, "results": shown or []}, [line], as_json=as_json, verbosity=verbosity)
        return
    if not is_address(store):
        open_store(store)  # refuses a path without a store
    server = serve_store(store, results=results, port=port, shown=shown)
    if is_address(store):
        check_address(store)
    details = [f"results file {name}" for name in shown or []]
    print_record(
        {"address": server.address, "results": shown or []}, [server.address], as_json=as_json, verbosity=verbosity, details=details
    )
    if not no_browser:
        webbrowser.open(server.address)
    server.serve_forever()
