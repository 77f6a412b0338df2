"""Command that runs a pre-registered study: study."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from stratascope.addresses import is_address
from stratascope.commands import options
from stratascope.commands.bucket_outputs import bucket_path
from stratascope.commands.output import Output, print_record, verbosity_options
from stratascope.commands.signature import options_in_errors, options_of
from stratascope.commands.terminal import echo
from stratascope.errors import InvalidInputError
from stratascope.preregistration import presets, read_plan
from stratascope.probe.preregistered.preregistered_study import preregistered_study
from stratascope.probe.preregistered.study_stores import study_stores
from stratascope.store.io.store_files import inside


@click.command(short_help="Run a pre-registered study; one sentence with its limits.")
@click.argument("paths", nargs=-1, metavar="[PLAN.toml] DIR")
@click.option("--preset", type=click.Choice(list(presets())), help="A built-in plan instead of PLAN.toml.")
@click.option("--write", "target", type=options.OUTPUT, metavar="PLAN.toml", help="Only save the plan, for editing.")
@options_of(preregistered_study, scheduler=options.SCHEDULER_HELP)
@options.workers
@click.option("-o", "--out", type=options.OUTPUT, help="Folder of results, figure and report; default: DIR/results.")
@verbosity_options
@options_in_errors
def study_command(
    paths: tuple[str, ...],
    preset: str | None,
    target: Path | None,
    scheduler: str,
    workers: int | None,
    out: Path | None,
    as_json: bool,
    verbosity: int,
) -> None:
    """Run a study according to its plan: check the stores in DIR, train all probes, state the primary outcome in one sentence.

    DIR is the folder that `extract --for PLAN.toml` filled. The plan fixes tasks, positions, baselines, metric, margins and the primary
    outcome beforehand; its digest is in every result and in the report DIR/results/study.html. docs/study.md describes the plan. The
    output folder caches finished layers: the same command resumes an interrupted run.

    \b
    Example, after 'stratascope demo --out demo', with the plan for the truth of the caption:
      stratascope study --preset truth demo --out demo/study
    """
    from stratascope.report.study_page import write_study_page
    from stratascope.store.io.durable import write_output

    source, folder = _plan_and_folder(paths, preset)
    plan = read_plan(source)
    if target is not None:
        if target.exists():
            raise InvalidInputError(f"expected a new file for the plan, found {target}; choose another name")
        write_output(target, lambda file: file.write(plan.text.encode()))
        record = {"plan": target, "digest": plan.digest}
        print_record(record, [f"plan {target}, digest {plan.digest}"], as_json=as_json, verbosity=verbosity)
        return
    if folder is None:
        raise InvalidInputError(
            f"expected the folder of the study's stores, found none; record them with `stratascope extract --for {shlex.quote(source)} "
            "--model MODEL --examples FILE --images DIR --boxes FILE --out DIR`"
        )
    stores = study_stores(plan, folder)
    output = Output(out or _results_of(folder), as_json, verbosity)
    done = preregistered_study(
        plan,
        stores,
        scheduler=scheduler,
        workers=workers,
        progress=sys.stderr.isatty() and not output.quiet,
        output=output.folder / "layers",
        on_cost=lambda text: None if output.quiet else echo(text, err=True),
    )
    for name, result in done.results.items():
        output.add(result, name=name, draw=False, summary=False)
    output.add(done.result)
    page, others = write_study_page(stores[plan.original.name], done.result, output.folder)
    if others:
        output.note(f"{output.folder} holds {others:,} results of other plans, which the report leaves out")
    output.page(page)
    output.finish()


def _results_of(folder: str) -> Path:
    """Folder of the results beside the stores of a study."""
    if not is_address(folder):
        return Path(folder) / "results"
    return bucket_path(str(inside(folder, "results")), click.get_current_context(), writing=True)


def _plan_and_folder(paths: tuple[str, ...], preset: str | None) -> tuple[str, str | None]:
    """The plan's file or preset, and the folder of the stores; UsageError for another number of arguments."""
    most = 1 if preset is not None else 2
    if len(paths) > most or (preset is None and not paths):
        raise click.UsageError(
            f"expected {'DIR beside --preset' if preset else 'PLAN.toml and DIR, or --preset'}, found {len(paths)} arguments"
        )
    if preset is not None:
        return preset, paths[0] if paths else None
    return paths[0], paths[1] if len(paths) == 2 else None
