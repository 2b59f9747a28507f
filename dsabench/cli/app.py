"""The command line: `dsabench COMMAND`; one file a command beside this one. Nothing here imports torch or pandas."""

from __future__ import annotations

import functools
import os
import sys
from typing import Annotated, Any

import typer

from dsabench import shutdown
from dsabench._version import __version__
from dsabench.cli import streams
from dsabench.cli.command_help import MOST_COLUMNS, HelpfulGroup, epilog
from dsabench.cli.commands import (
    audit,
    bench,
    compare,
    configs,
    doctor,
    export,
    fields,
    guide,
    new_attention,
    plot,
    profile,
    report,
    reproduce,
    runs,
    schema,
    sweep,
    train,
    visualize_selection,
)
from dsabench.cli.safe_text import printable
from dsabench.errors import DsabenchError

_EXAMPLES = (
    ("A first answer: small runs, minutes on two CPU cores", "dsabench sweep --config quick"),
    ("What it means", "dsabench compare"),
)

app = typer.Typer(
    name="dsabench",
    help="Does DeepSeek Sparse Attention learn as well as dense attention, and where is it faster?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=HelpfulGroup,
    epilog=epilog("", *_EXAMPLES),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MOST_COLUMNS},
)
train.add_to(app)
sweep.add_to(app)
compare.add_to(app)
plot.add_to(app)
visualize_selection.add_to(app)
report.add_to(app)
profile.add_to(app)
bench.add_to(app)
audit.add_to(app)
doctor.add_to(app)
runs.add_to(app)
export.add_to(app)
reproduce.add_to(app)
configs.add_to(app)
fields.add_to(app)
schema.add_to(app)
new_attention.add_to(app)
guide.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dsabench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,
) -> None:
    if debug:
        os.environ["DSABENCH_DEBUG"] = "1"


@functools.cache
def _command() -> Any:
    """The command line as parsed; making it takes a tenth of a second, which a process that runs several pays once."""
    return typer.main.get_command(app)


@streams.guarded
def main() -> None:
    """Entry point: errors a user can mend are one message and exit code 2, without a traceback unless --debug."""
    try:
        with shutdown.on_signals():
            _command()(prog_name="dsabench")  # whatever started it: the variables of completion have its name
    except DsabenchError as error:
        if os.environ.get("DSABENCH_DEBUG"):
            raise
        print("error: " + "\n".join(printable(line) for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
