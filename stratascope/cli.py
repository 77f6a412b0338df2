"""Command line: groups of commands, errors as one line, signals."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from types import TracebackType
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from stratascope.addresses import without_secrets
from stratascope.commands.completion import complete_values
from stratascope.commands.signature import with_option_names
from stratascope.commands.terminal import STARTS_AGAIN, echo, visible
from stratascope.errors import InvalidInputError, StratascopeError, is_panic, out_of_memory

SECTIONS = {
    "Data": {
        "demo": ("data", "Full pipeline on generated scenes with the built-in model."),
        "fetch": ("data", "Download published data sets."),
        "convert": ("data", "Unpack a published benchmark into rows and images."),
        "pairs": ("data", "Minimal pairs: subject and object exchanged, image mirrored."),
    },
    "Extract": {
        "plan": ("extract", "Cost of an extraction: disk, time, memory; writes nothing."),
        "extract": ("extract", "Run every example through the model once, into a store."),
        "import": ("imports", "Store activations that another program saved."),
    },
    "Store": {
        "info": ("stores", "Contents, completeness and provenance of a store."),
        "verify": ("stores", "Check every stored number against its checksum."),
        "copy": ("stores", "Copy a store or a part of it to a folder, zip or bucket."),
        "diff": ("stores", "Compare two stores."),
        "push": ("hub", "Copy a store or a part of it to the Hugging Face Hub."),
        "pull": ("hub", "Download a store from the Hugging Face Hub."),
    },
    "Probe": {
        "probe": ("probe", "Cross-validated linear probes by layer and position."),
        "entanglement": ("probe", "Probes on single image cells of the vision tower."),
        "patches": ("probe", "Probes on single image tokens of the decoder."),
        "pca": ("probe", "Principal components of the residual stream, by layer."),
        "study": ("study", "Run a pre-registered study; one sentence with its limits."),
    },
    "Attention": {
        "share": ("attention", "Attention of the final token by part of the prompt."),
        "rollout": ("attention", "Attention rollout onto the image."),
        "flow": ("attention", "Attention flow onto the image (exact maximum flow)."),
        "overlap": ("attention", "Overlap of each head's attention with the gold boxes."),
        "pointing": ("attention", "Localisation of each attribution method on the named objects."),
    },
    "Causal": {
        "intervene": ("interventions", "Erase, steer and patch what probes read; measure the answers."),
        "causal": ("interventions", "Layers that encode a concept, use it, both, or neither."),
        "answers": ("answers", "Accuracy and confidence of the model's answers."),
        "lens": ("answers", "Logit lens: the model's own readout at every layer."),
        "attribution": ("answers", "Direct logit attribution by head, block and part of the prompt."),
        "heads": ("answers", "Rank heads by attribution, overlap and probe."),
        "knockouts": ("answers", "Effect of attention knockouts by reading tokens and window."),
        "faithfulness": ("answers", "Agreement of attribution methods with attention knockouts."),
        "explain": ("answers", "One page for one example, all methods side by side."),
    },
    "Report": {
        "figure": ("report", "Draw one figure by name."),
        "report": ("report", "Write all results of a store to one HTML page."),
        "view": ("report", "Browse examples in the web viewer."),
    },
}
"""Section of `--help` -> command -> its module in `stratascope.commands` and its short help. A module is imported when its command runs."""
SHORT_HELP = {name: text for section in SECTIONS.values() for name, (_, text) in section.items()}
"""Command -> its short help, in the order of `--help`."""

FAULT = "internal error of Stratascope"
RESUMED = frozenset({"demo", "fetch", "extract", "import", "copy", "push", "pull", "probe", "study", "intervene"})
"""Commands that keep finished parts; the same command continues after an interruption."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, handled like Ctrl-C: partial files are removed and worker processes end."""


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM or SIGHUP (a closed terminal); a second one ends the process at once."""
    known = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]  # no SIGHUP on Windows
    caught = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores SIGHUP
    if threading.current_thread() is not threading.main_thread() or signal.SIGTERM not in caught:
        yield  # an embedding program handles signals
        return

    def terminate(*_: object) -> None:
        restore()
        raise Terminated

    def restore() -> None:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)

    for number in caught:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        restore()


def _say(text: str) -> None:
    echo(f"stratascope: {without_secrets(' '.join(text.split()))}", err=True)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    echo(without_secrets("".join(traceback.format_exception(kind, error, trace))), err=True)


def _refuse(ctx: click.Context, error: click.UsageError) -> NoReturn:
    """Print a usage error as one line; show help for a command without arguments (click >= 8.2)."""
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    path = (error.ctx or ctx).command_path
    said = error.format_message().rstrip(".")
    _say(f"{said} See {path} --help" if said.endswith("?") else f"{said}; see {path} --help")
    ctx.exit(2)


def _from_panic(error: BaseException | None) -> bool:
    """Whether a panic of a Rust library led to an error."""
    while error is not None and not is_panic(error):
        error = error.__cause__
    return error is not None


def _exit_at_once(code: int) -> None:
    """End without the interpreter's clean-up, in which threads of a library that panicked can abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Commands(click.Group):
    """Commands that load on demand; errors become one line on stderr and exit code 2, an interruption 130."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for text in args if not ctx.resilient_parsing else ():
            if "\0" in text or text != text.encode("utf-8", "replace").decode():
                _say(f"expected arguments in UTF-8, found {text!r}; rename the file")
                ctx.exit(2)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _refuse(ctx, error)

    def invoke(self, ctx: click.Context) -> Any:
        debug = bool(ctx.params.get("debug"))
        if debug:
            sys.excepthook = _show_traceback
        plain = warnings.formatwarning
        warnings.formatwarning = lambda *args, **named: visible(plain(*args, **named))
        try:
            return self._invoke(ctx, debug)
        finally:
            warnings.formatwarning = plain

    def _invoke(self, ctx: click.Context, debug: bool) -> Any:
        try:
            with _signals_raise():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except click.UsageError as error:
            _refuse(ctx, error)
        except KeyboardInterrupt as error:
            resumes = ctx.invoked_subcommand in RESUMED and not ctx.meta.get(STARTS_AGAIN)
            with suppress(OSError):  # the terminal is closed
                _say("interrupted; run the same command to continue" if resumes else "interrupted; no results were saved")
                sys.stdout.flush()
                sys.stderr.flush()
            if isinstance(error, Terminated):  # do not wait for threads
                os._exit(INTERRUPTED)
            ctx.exit(INTERRUPTED)
        except (StratascopeError, OSError, RecursionError) as error:
            if debug:
                raise
            if isinstance(error, RecursionError):
                error = InvalidInputError("expected plain data, found lists or records nested too deeply in a file")
            _say(with_option_names(error.message, self._command_run(ctx)) if isinstance(error, StratascopeError) else str(error))
            if _from_panic(error):
                atexit.register(_exit_at_once, 2)
            ctx.exit(2)
        except Exception as error:
            if debug:
                raise
            if out_of_memory(error):
                _say(
                    f"not enough memory: {str(error) or type(error).__name__}; close other programs or use a larger machine, then run again"
                )
                ctx.exit(2)
            if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # before Python 3.13
                _say(str(error))
                ctx.exit(2)
            _say(f"{FAULT}: {type(error).__name__} {error}; please report it with the output of --debug")
            ctx.exit(2)

    def _command_run(self, ctx: click.Context) -> click.Command:
        return self.get_command(ctx, ctx.invoked_subcommand or "") or self

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*SHORT_HELP, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = next((section[cmd_name][0] for section in SECTIONS.values() if cmd_name in section), None)
        if module is None:
            return super().get_command(ctx, cmd_name)
        return complete_values(getattr(import_module(f"stratascope.commands.{module}"), f"{cmd_name}_command"))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not (ctx.resilient_parsing or name.startswith("-") or name in self.list_commands(ctx)):
            near = get_close_matches(name, self.list_commands(ctx), n=2)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands, without importing their modules, and options of `stratascope` itself."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=text) for name, text in SHORT_HELP.items() if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in section.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error; goes before the command.")
@click.version_option(package_name="stratascope", prog_name="stratascope")
def main(debug: bool) -> None:
    """Find the layers in which a vision-language model encodes a spatial relation.

    Begin with 'stratascope demo --out demo'. The example in the --help of each command then works on it.

    STORE is the output of `extract`: a folder, a zip of it, or an address (http, https, s3, gs, az, hf). Results go to STORE-results next
    to it; --out names another folder, or an address in a bucket.

    \b
    Shell completion of commands, options, tasks, positions, arrays and figures:
      bash  eval "$(_STRATASCOPE_COMPLETE=bash_source stratascope)" in ~/.bashrc
      zsh   eval "$(_STRATASCOPE_COMPLETE=zsh_source stratascope)" in ~/.zshrc
      fish  _STRATASCOPE_COMPLETE=fish_source stratascope | source in ~/.config/fish/config.fish
    """


def all_commands() -> dict[str, click.Command]:
    """Every command by name, in the order of `--help`; imports all of their modules."""
    return {name: command for name in SHORT_HELP if (command := main.get_command(click.Context(main), name)) is not None}
