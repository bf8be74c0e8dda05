"""The command line: which commands there are, and how their errors reach the user.

Nothing heavy is imported before a command runs, so that `specdec --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import specdec
from specdec.commands import UserError
from specdec.commands.audit import audit
from specdec.commands.demo import DemoCommand, demo
from specdec.commands.doctor import doctor
from specdec.commands.export import export
from specdec.commands.generate import generate
from specdec.commands.serve import serve
from specdec.eval.bench import bench
from specdec.eval.calibrate import calibrate
from specdec.training.distill import distill
from specdec.training.probe import train_probe


class Commands(TyperGroup):
    """Reports a user's mistake in one line; whatever else is raised is a bug and shows as one."""

    def invoke(self, ctx: Any) -> Any:  # Any: whose Context it is depends on typer's release
        try:
            return super().invoke(ctx)
        except (UserError, typer.BadParameter) as error:
            text = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
            print(f"specdec {ctx.invoked_subcommand}: {text}", file=sys.stderr)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="specdec",
    cls=Commands,
    help="Speculative decoding for large vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# A command is a function: one import above and one line here. What it needs beyond typer and rich
# it imports when it runs.
app.command(cls=DemoCommand)(demo)
app.command()(generate)
app.command()(serve)
app.command()(audit)
app.command()(doctor)
app.command()(bench)
app.command()(distill)
app.command()(calibrate)
app.command()(train_probe)
app.command()(export)


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
