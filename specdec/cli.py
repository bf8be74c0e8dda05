"""The command line: which commands there are, and how their errors reach the user.

Nothing heavy is imported before a command runs, so that `specdec --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

import specdec
from specdec.commands import UserError
from specdec.commands.demo import DemoCommand, demo
from specdec.commands.doctor import doctor
from specdec.commands.generate import generate


class _Commands(TyperGroup):
    """Reports a user's mistake in one line; whatever else is raised is a bug and shows as one."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except UserError as error:
            print(f"specdec {ctx.invoked_subcommand}: {error}", file=sys.stderr)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="specdec",
    cls=_Commands,
    help="Speculative decoding for large vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# A command is a function of specdec.commands, one import above and one line here. What it needs
# beyond typer and rich it imports when it runs.
app.command(cls=DemoCommand)(demo)
app.command()(generate)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"specdec {specdec.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Speculative decoding for large vision-language models."""


def main() -> None:
    """The `specdec` command."""
    app()


if __name__ == "__main__":
    main()
