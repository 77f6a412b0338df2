"""The command line: parse, call one function, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stratascope import options
from stratascope.errors import InvalidInputError, StratascopeError

if TYPE_CHECKING:
    from stratascope.extract import ExtractionSettings
    from stratascope.store import ActivationStore


ORDER = ("demo", "plan", "extract", "info", "verify", "copy", "diff", "probe", "share", "rollout")
"""Of the commands in the help: the order of use."""


class Commands(click.Group):
    """Turns the library's errors into one line on stderr and exit code 2; an interruption into 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StratascopeError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"stratascope: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"stratascope: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("stratascope: interrupted; the same command goes on from here", err=True)
            ctx.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="stratascope", prog_name="stratascope")
def main(debug: bool) -> None:
    """See in which layers of a vision-language model a spatial relation lives.

    Begin with 'stratascope demo --out demo'. The example in each command's --help then works on it.
    """


def _settings(options: dict[str, Any]) -> ExtractionSettings:
    from stratascope.extract import ExtractionSettings

    return ExtractionSettings(**options)


@main.command(short_help="What an extraction would record and cost; runs nothing.")
@options.extraction_options
@click.option("--image-size", callback=options.size, metavar="WxH", help="Assume this size of every image, before the photos are there.")
@click.option("--show", default=1, show_default=True, metavar="N", help="Print the tokens and spans of the first N examples.")
def plan(show: int, **chosen: Any) -> None:
    """What an extraction would record and cost. Runs no model, writes nothing.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope plan --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images
    """
    from stratascope.datasets.examples import describe
    from stratascope.extract import plan_extraction
    from stratascope.extract.summary import plan_summary

    made = plan_extraction(_settings(chosen), progress=sys.stderr.isatty())
    click.echo(f"{describe(made.examples)}\n\n{plan_summary(made, show)}")


@main.command(short_help="Examples through the model, once, into a store.")
@options.extraction_options
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="STORE.zarr", help="The store to fill, or to go on filling.")
@click.option("--batch-tokens", default=8192, show_default=True, help="Tokens in a forward pass, at most; halve it when memory runs out.")
@click.option("--shard", callback=options.shard, default="0/1", show_default=True, metavar="I/N", help="Every N-th block, from the I-th.")
def extract(out: Path, batch_tokens: int, shard: tuple[int, int], **chosen: Any) -> None:
    """Run every example through the model once and fill a store. Goes on where it stopped.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope extract --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images --out mine.zarr
    """
    from stratascope.extract import plan_extraction, run_extraction
    from stratascope.extract.extraction import require_extract_extra

    require_extract_extra()
    made = plan_extraction(_settings(chosen), weights=True, progress=sys.stderr.isatty())
    report = run_extraction(
        made,
        out,
        rank=shard[0],
        of=shard[1],
        batch_tokens=batch_tokens,
        progress=sys.stderr.isatty(),
        command=shlex.join(["stratascope", *sys.argv[1:]]),
    )
    for example, reason in report.failed.items():
        click.echo(f"not recorded: example {example}: {reason}", err=True)
    if report.halvings:
        click.echo(
            f"the GPU's memory ran out {report.halvings} times and batches were halved; lower --batch-tokens to spare the time", err=True
        )
    done = f"wrote {report.written_examples:,} examples in {report.written_blocks} of {report.blocks} blocks"
    lost = f"; {len(report.failed)} of them could not be recorded" if report.failed else ""
    click.echo(f"{out}: {done + lost if report.written_blocks else 'nothing left to do'}")


def _open(path: str) -> ActivationStore:
    from stratascope.store import ActivationStore

    return ActivationStore.open(path)


@main.command(short_help="What a store holds, and where it comes from.")
@click.argument("store")
def info(store: str) -> None:
    """What a store holds, how complete it is, where it comes from, how large it is.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope info demo/original.zarr
    """
    from stratascope.texts import describe_store

    click.echo(describe_store(_open(store)))


@main.command(short_help="Whether every number of a store is what was written.")
@click.argument("store")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the images: compare their hashes too.")
@click.option("--repair", is_flag=True, help="Un-mark bad blocks, so that the same extract command fills them again.")
def verify(store: str, images: Path | None, repair: bool) -> None:
    """Decode every written block and check it. Exit code 1 where something is wrong.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope verify demo/original.zarr
    """
    from stratascope.store import repair as unmark
    from stratascope.store import verify as check
    from stratascope.texts import verification_text

    with _bar("verify", "block") as bar:
        found = check(store, images=images, progress=bar)
    click.echo(verification_text(found))
    if repair and found.bad_blocks:
        click.echo(f"un-marked blocks {', '.join(map(str, unmark(store, found)))}; run the extract command again to fill them")
    if not found.ok:
        sys.exit(1)


@main.command(short_help="A store, or a part of it, as a new store.")
@click.argument("source")
@click.argument("target")
@click.option("--arrays", callback=options.names, help="Arrays to take, such as residual,attention_rows; default: all.")
@click.option("--layers", callback=options.numbers, metavar="N,M-K", help="Layers to take.")
@click.option("--positions", callback=options.names, help="Positions to take.")
@click.option("--examples", callback=options.numbers, metavar="N,M-K", help="Example numbers to take.")
def copy(source: str, target: str, **chosen: Any) -> None:
    """Copy from a folder, zip or URL into a new folder or zip. The copy says what was taken.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope copy demo/original.zarr small.zip --arrays residual --layers 0,6 --positions final
    """
    from stratascope.store import copy_store
    from stratascope.texts import copy_text

    with _bar("copy", "block") as bar:
        taken = copy_store(source, target, progress=bar, **chosen)
    click.echo(copy_text(target, taken))


@main.command(short_help="In what two stores differ.")
@click.argument("a")
@click.argument("b")
def diff(a: str, b: str) -> None:
    """Compare provenance, examples and numbers. Exit code 1 where something but date and command differs.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope diff demo/original.zarr demo/blank.zarr
    """
    from stratascope.store import diff_stores
    from stratascope.texts import difference_text

    found = diff_stores(a, b)
    click.echo(difference_text(found))
    if not found.same:
        sys.exit(1)


@contextmanager
def _bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, where there is a terminal, that is told (done, all)."""
    from tqdm.auto import tqdm

    with tqdm(desc=name, unit=unit, disable=not sys.stderr.isatty(), leave=False) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


@main.command(short_help="In which layers truth and relation can be read.")
@click.argument("store")
@click.option(
    "--tasks",
    callback=options.names,
    default="truth,relation",
    show_default=True,
    help="truth, relation, answer or a column.",
)
@click.option("--positions", callback=options.names, help="Where to read it; default: all that the store has.")
@click.option("--folds", default=5, show_default=True, help="Folds, grouped by image.")
@click.option("--seed", default=0, show_default=True, help="Of folds and resamples.")
@click.option("--baseline", metavar="STORE", help="Second store (the blank condition, say) whose curves are drawn beside.")
@click.option("--scheduler", default="threads", show_default=True, help="synchronous, threads, processes, or a Dask scheduler's address.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results and figures; default: STORE-results.")
def probe(store: str, baseline: str | None, out: Path | None, **chosen: Any) -> None:
    """In which layers truth and relation can be read: a cross-validated logistic probe for each layer and position.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope probe demo/original.zarr --tasks truth --positions final --baseline demo/blank.zarr
    """
    from stratascope.workflow import probe_and_draw

    folder = out or _results_folder(store)
    click.echo(
        probe_and_draw(
            _open(store),
            _open(baseline) if baseline else None,
            folder,
            **chosen,
            progress=sys.stderr.isatty(),
        )
    )


def _results_folder(store: str) -> Path:
    if "://" in store:
        return Path(f"{Path(store.rstrip('/')).stem}-results")
    path = Path(store)
    return path.with_name(f"{path.stem}-results")


@main.command(short_help="Where the final token's attention comes from.")
@click.argument("store")
@click.option("--examples", callback=options.numbers, metavar="N,M-K", help="Example numbers; default: the first eight with maps.")
@click.option("--window", callback=options.numbers, metavar="A-B", help="Roll only through blocks A to B; default: all.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results and figures; default: STORE-results.")
def rollout(store: str, examples: tuple[int, ...] | None, window: tuple[int, ...] | None, out: Path | None) -> None:
    """Attention rollout of the final token onto the image, for chosen examples.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope rollout demo/original.zarr --examples 0-3
    """
    from stratascope.workflow import roll_and_draw

    blocks = (window[0], window[-1] + 1) if window else None
    click.echo(roll_and_draw(_open(store), out or _results_folder(store), examples=examples, window=blocks))


@main.command(short_help="How the final token's attention is divided.")
@click.argument("store")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results and figures; default: STORE-results.")
def share(store: str, out: Path | None) -> None:
    """How the final token's attention is divided between image, caption and the rest, by layer and head.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope share demo/original.zarr
    """
    from stratascope.workflow import share_and_draw

    click.echo(share_and_draw(_open(store), out or _results_folder(store)))


@main.command(short_help="The whole way, on generated scenes.")
@click.option("--out", default="stratascope-demo", show_default=True, type=click.Path(path_type=Path), help="Folder to fill.")
@click.option("--scenes", default=512, show_default=True, help="How many scenes to generate.")
@click.option("--seed", default=0, show_default=True, help="Of the scenes.")
def demo(out: Path, scenes: int, seed: int) -> None:
    """The whole way on generated scenes with the built-in model: scenes, store, probes, rollout, figures.

    \b
    Example:
      stratascope demo --out demo
    """
    from stratascope.demo import run_demo

    if scenes < 1:
        raise InvalidInputError(f"expected --scenes to be at least 1, found {scenes}")
    click.echo(run_demo(out, scenes=scenes, seed=seed, progress=sys.stderr.isatty(), say=click.echo))
