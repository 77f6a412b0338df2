"""Commands to look at results and single examples: report, figure, view."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from stratascope.addresses import is_address, without_secrets
from stratascope.commands import options
from stratascope.commands.terminal import echo, open_store
from stratascope.errors import InvalidInputError


@click.command(short_help="All results of a store on one page.")
@click.argument("store")
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=options.OUTPUT, help="The page; default: STORE-report.html beside the store.")
@click.option("--title", default="", help="Title of the page; default: made from the model's name.")
def report_command(store: str, results: tuple[Path, ...], out: Path | None, title: str) -> None:
    """Write what the results of a store say as one HTML file that needs no network and no other file.

    RESULTS are files or folders; by default STORE-results, and `results` beside the store.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope report demo/original.zarr -o report.html
    """
    from stratascope.report.report_file import write_report
    from stratascope.results.locations import beside

    echo(write_report(open_store(store), results, out or beside(store, "-report.html"), where=without_secrets(store), title=title))


@click.command(short_help="One figure from results, in paper quality.")
@click.argument("name", required=False)
@click.argument("results", nargs=-1, metavar="[STORE|RESULTS]...")
@click.option("-o", "--out", type=options.OUTPUT, help="File to write: .pdf, .svg or .png; default: NAME.pdf.")
@click.option("--list", "listed", is_flag=True, help="List the figures there are, and what makes their results.")
@click.option("--task", "--tasks", "task", help="Task of a probe's figure; default: truth, or the first there is.")
@click.option("--position", help="Position of a probe's figure; default: all where a figure shows several, else the final token.")
@click.option("--width", default=3.4, show_default=True, metavar="INCHES", help="Width of the figure; a paper's column by default.")
@click.option("--height", type=float, metavar="INCHES", help="Height of the figure; default: its own.")
def figure_command(
    name: str | None,
    results: tuple[str, ...],
    out: Path | None,
    listed: bool,
    task: str | None,
    position: str | None,
    width: float,
    height: float | None,
) -> None:
    """Draw one figure from results: of a store, whose results lie beside it, or of results files and folders.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope figure curves demo/original.zarr -o curves.pdf
    """
    from stratascope.report.figure_registry import FIGURES
    from stratascope.report.named_figure import draw_named

    if listed:
        wide = max(map(len, FIGURES))
        echo("\n".join(f"{f.name:<{wide}}  {f.shows}\n{'':<{wide}}  from {f.command}" for f in FIGURES.values()))
        return
    if name is None or not results:
        raise InvalidInputError(
            "expected the name of a figure and a store or results, such as: stratascope figure curves demo/original.zarr"
        )
    echo(
        draw_named(
            name,
            results,
            out or Path(f"{name}.pdf"),
            task=task,
            position=None if position == "all" else position,
            width=width,
            height=height,
        )
    )


@click.command(short_help="Look at single examples in the browser.")
@click.argument("store")
@click.option(
    "--results",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of results; default: STORE-results, or `results` beside the store.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on this machine; default: any that is free.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option(
    "--export",
    type=options.OutputPath(file_okay=False),
    metavar="FOLDER",
    help="Write the page into a folder for a web host instead.",
)
def view_command(store: str, results: Path | None, port: int, no_browser: bool, export: Path | None) -> None:
    """Open a store in the browser: image, tokens, heads and layers of any example. Ctrl-C ends it.

    Results of another store are refused; curves of a baseline of the same examples are shown.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope view demo/original.zarr --results demo/results
    """
    from stratascope.report.viewer import export_page, serve_store
    from stratascope.report.viewer.address import check_address, check_page_can_ask
    from stratascope.report.viewer.files import files_of
    from stratascope.report.viewer.page import results_shown
    from stratascope.results.locations import results_folders

    if is_address(store):
        check_page_can_ask(store)
    default = [folder for folder in results_folders(store) if not is_address(store) and folder.is_dir()]
    given, results = results, results or next(iter(default), None)
    shown = None
    if results is not None:
        shown, others = results_shown(results, open_store(store), shared=given is None)
        if others:
            echo(f"{results}: not shown, being of other stores: {others} results files", err=True)
    if export is not None:
        if not is_address(store):
            files_of(Path(store))
        echo(f"{export_page(export, store, results, shown)}: put it on any web host that answers Range requests (see docs/viewer.md)")
        return
    if not is_address(store):
        open_store(store)  # refuses what is no store
    server = serve_store(store, results=results, port=port, shown=shown)
    if is_address(store):
        check_address(store)
    echo(server.address)
    if not no_browser:
        webbrowser.open(server.address)
    server.serve_forever()
