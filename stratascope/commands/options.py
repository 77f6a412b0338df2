"""Options of the command line: how their values are read, and those that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stratascope.addresses import is_address, was_address

MOST_NUMBERS = 1_000_000
"""In a range of the command line."""
_DIGITS = re.compile("[0-9]{1,18}")


class OutputPath(click.Path):
    """A path to write to, on this machine: addresses are refused before anything runs."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_address(value) or was_address(Path(value)):
            self.fail(
                f"expected a path on this machine, found the address {value}; write to a folder and upload that (docs/remote.md)",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


OUTPUT = OutputPath()
"""Of every option and argument that names what is written."""


def names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names parted by commas."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def size(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT in pixels."""
    if value is None:
        return None
    width, cross, height = value.lower().partition("x")
    if not cross or not width.isdecimal() or not height.isdecimal() or not int(width) * int(height):
        raise click.BadParameter(f"expected WIDTHxHEIGHT in pixels such as 640x480, found {value!r}", param=param)
    return int(width), int(height)


def thumbnail(context: click.Context, param: click.Parameter, value: str) -> tuple[int, int] | None:
    """WIDTHxHEIGHT in pixels, or none."""
    return None if value.lower() == "none" else size(context, param, value)


def shard(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """I/N: the I-th of N processes."""
    if value is None:
        return None
    rank, slash, of = value.partition("/")
    if not slash or not rank.isdecimal() or not of.isdecimal() or int(rank) >= int(of):
        raise click.BadParameter(f"expected I/N with I below N such as 0/2, found {value!r}", param=param)
    return int(rank), int(of)


def numbers(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Numbers and ranges parted by commas."""
    if value is None:
        return None
    try:
        return tuple(n for part in value.split(",") for n in _number_range(part))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers or ranges such as 0,3,8-11, found {value!r}", param=param) from error


def blocks(context: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Half-open range of the blocks from the first number to the last."""
    found = numbers(context, param, value)
    return (found[0], found[-1] + 1) if found else None


def decimals(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Numbers such as 1e-3 parted by commas."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"expected numbers such as 1e-3,1e-2, found {value!r}", param=param) from error


def _number_range(part: str) -> range:
    first, dash, last = part.strip().partition("-")
    if not _DIGITS.fullmatch(first) or (dash and not _DIGITS.fullmatch(last)):  # int would take 1_0 for 10
        raise ValueError("no number")
    found = range(int(first), int(last if dash else first) + 1)
    if not found or len(found) > MOST_NUMBERS:
        raise ValueError(f"{len(found)} numbers")
    return found


def batch_tokens(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--batch-tokens`, of whatever sends batches through a model."""
    text = "Tokens in a forward pass, at most; halve it when memory runs out."
    return click.option("--batch-tokens", default=8192, show_default=True, type=click.IntRange(min=1), help=text)(command)


def seed(said: str) -> Callable[[Any], Any]:
    """The option --seed, with what it is the seed of."""
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=said)


only = click.option(
    "--only",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Leave out all other examples: label=1 for true captions, whose relation is the image's; category=Projective for a kind of "
    "relations. Repeated: any of a column's values.",
)
results = click.option("--out", type=OUTPUT, help="Folder of results and figures; default: STORE-results.")
examples = click.option(
    "--examples", metavar="ID,N,M-K", help="Ids or numbers of examples, an id first; default: the first eight that have a map."
)
window = click.option("--window", callback=blocks, metavar="A-B", help="Only through decoder blocks A to B; default: all.")
scheduler = click.option(
    "--scheduler", help="Where the work is done: synchronous (default), threads, processes, or a Dask scheduler's address."
)


def extraction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `plan` and `extract` share."""
    options = [
        click.option(
            "--model",
            required=True,
            metavar="demo|PATH|HUB_ID",
            help="Built-in model, folder, or Hub id such as Qwen/Qwen2.5-VL-7B-Instruct.",
        ),
        click.option(
            "--examples",
            required=True,
            multiple=True,
            type=click.Path(path_type=Path),
            help="JSON lines or CSV in VSR's form, or a What's Up list; may be repeated.",
        ),
        click.option("--images", type=click.Path(path_type=Path), help="Folder of the images."),
        click.option("--boxes", type=click.Path(path_type=Path), help="Gold boxes, in COCO's instances format."),
        click.option(
            "--prompt",
            default="true-false",
            show_default=True,
            help="true-false, yes-no, where; for What's Up's data sets also four-way, six-way and others (docs/data.md).",
        ),
        click.option("--system", help="Text of the system turn, instead of the chat template's own."),
        click.option("--no-system", is_flag=True, help="No system turn, though the chat template brings its own."),
        click.option(
            "--condition",
            default="original",
            show_default=True,
            help="What is done to the images: original, blank, mirror, shuffled-image.",
        ),
        click.option(
            "--positions",
            callback=names,
            metavar="NAME,NAME",
            help="Where to record the residual stream: final, image, subject, relation, object, subject_box, object_box; default: all that "
            "there are.",
        ),
        click.option(
            "--record",
            callback=names,
            metavar="NAME,NAME",
            default="residual,attention_rows,attention_maps,form_logits,top_tokens",
            show_default=True,
            help="What to store besides the answer's logits (docs/recording.md); also value_norms, value_logits, head_outputs, "
            "head_logits, vision_residual, vision_output, hiding_estimate, knockout.",
        ),
        click.option("--fusion", default="mean", show_default=True, help="How the heads' attention maps are made one: mean, max, min."),
        click.option("--maps", type=int, metavar="N", help="Attention maps of only N examples, evenly spread; default: of all."),
        click.option(
            "--knockouts",
            type=int,
            default=128,
            show_default=True,
            metavar="N",
            help="Knockouts (--record knockout) of only N examples, evenly spread.",
        ),
        click.option(
            "--knockout-modes",
            callback=names,
            metavar="NAME,NAME",
            default="final,later",
            show_default=True,
            help="From whom a knockout hides: from the final token alone, from all later tokens.",
        ),
        click.option(
            "--knockout-window",
            type=int,
            metavar="N",
            help="Blocks in a sliding window of knockouts, besides all blocks; 0: all blocks only; default: a quarter of the model's.",
        ),
        click.option(
            "--thumbnail",
            callback=thumbnail,
            default="112x112",
            show_default=True,
            metavar="WxH|none",
            help="Size of the small images that travel in the store.",
        ),
        click.option("--limit", type=int, metavar="N", help="Only the first N examples."),
        click.option("--max-pixels", type=int, metavar="N", help="Shrink larger images; default: the processor's limit."),
        click.option(
            "--dtype",
            help="What the model computes in: float32, bfloat16 or float16; default: the weights' own on a GPU, float32 on a CPU.",
        ),
        click.option("--device", default="auto", show_default=True, help="Where the model runs: cpu, cuda, cuda:1, ..."),
        click.option(
            "--strict",
            is_flag=True,
            help="Stop at images that cannot be recorded and boxes that do not fit their photo, instead of leaving them out.",
        ),
        click.option("--revision", help="Branch, tag or commit of a Hub model."),
        click.option(
            "--untrained",
            type=int,
            is_flag=False,
            flag_value=0,
            metavar="[SEED]",
            help="Freshly drawn weights instead of the model's own: a baseline for probes.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
