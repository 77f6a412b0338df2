"""The command line: parse, call one function, print."""

from __future__ import annotations

from typing import Any

import click

from stratascope.commands import attention, fetching, looking, measuring, probing, recording, stores
from stratascope.errors import StratascopeError

COMMANDS = (
    recording.demo, fetching.fetch, recording.plan, recording.extract,
    stores.info, stores.verify, stores.copy, stores.diff, probing.probe,
    measuring.answers, measuring.share, measuring.rollout,
    attention.flow, attention.overlap, attention.attribution, attention.heads, attention.faithfulness, attention.explain,
    looking.figure, looking.report, looking.view,
)  # fmt: skip
"""The commands, in the order of use."""


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
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="stratascope", prog_name="stratascope")
def main(debug: bool) -> None:
    """See in which layers of a vision-language model a spatial relation lives.

    Begin with 'stratascope demo --out demo'. The example in each command's --help then works on it.
    """


for command in COMMANDS:
    main.add_command(command)
