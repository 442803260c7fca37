"""The `miniai` command. Every import that costs time stands inside the command that needs it."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from miniai import __version__
from miniai.base.errors import UserError, UserNotice
from miniai.cli import (  # noqa: F401 (some only add commands to `evaluate` and `train`)
    data,
    evaluate,
    evaluate_fashion,
    evaluate_sampling,
    train,
    train_fashion,
    train_features,
    train_personal,
)
from miniai.cli.generate import generate
from miniai.cli.ui import ui

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # plain help is there in a fraction of the time
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(ui)
for part in (data, train, evaluate):
    app.add_typer(part.app, name=part.__name__.rpartition(".")[2])


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"miniai {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Stable Diffusion, whole, from its foundations: paint a prompt, train a model, measure it."""


# Click's own class, or that of the copy of click that newer versions of typer carry.
_CommandLineError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """The entry point: exit code 0, or 2 after one line about a bad input, or 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a prompt may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("RANK", "0") != "0":  # of several processes that train together, the first one speaks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: the only place that turns errors into lines."""
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        warnings.showwarning = _notice_printer()
        try:
            with command.make_context("miniai", list(arguments) or ["--help"]) as context:
                command.invoke(context)
        except UserError as error:
            return _fail(f"error: {error}")
        except _CommandLineError as error:
            where = error.ctx.command_path if getattr(error, "ctx", None) else "miniai"
            return _fail(f"error: {error.format_message()} (see '{where} --help')")
        except typer.Exit as done:
            return done.exit_code
        except (KeyboardInterrupt, typer.Abort) as stop:
            return _fail(str(stop) or "stopped", _INTERRUPTED)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    return 0


def _fail(line: str, code: int = 2) -> int:
    typer.echo(line, err=True)
    return code


def _notice_printer() -> Any:
    """For `warnings.showwarning`: a notice for the user is one line, once; warnings to programmers are hidden."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        line = f"warning: {message}"
        if issubclass(category, UserNotice) and line not in shown:
            shown.add(line)
            typer.echo(line, err=True)

    return show
