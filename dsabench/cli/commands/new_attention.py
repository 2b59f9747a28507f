"""`dsabench new-attention`: plugin, test and sweep config of an attention to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli.command_help import LOOK_UP, OUTPUT, HelpfulCommand, epilog
from dsabench.cli.options import JsonFlag

NewNameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Its name: small letters, digits and _, for example my_gate.")
]
FolderOption = Annotated[
    Path, typer.Option("--out", help="Folder for the three files.", metavar="DIR", rich_help_panel=OUTPUT)
]
_EXAMPLES = (
    ("Three files in this folder", "dsabench new-attention my_gate"),
    ("In a folder of their own", "dsabench new-attention my_gate --out gates"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "new-attention",
        cls=HelpfulCommand,
        short_help="Begin an attention of your own.",
        epilog=epilog("attention", *_EXAMPLES),
        rich_help_panel=LOOK_UP,
    )(new_attention)


def new_attention(name: NewNameArgument, out: FolderOption = Path(), json: JsonFlag = False) -> None:
    """Begin an attention of your own: NAME.py, its test, and a sweep against dense attention.

    The files hold a worked example (retention) that trains as it is; replace its formula. Files that are there are
    not touched. What to do next is printed.
    """
    from dsabench.cli.plugin_files import new_files, write_new
    from dsabench.cli.views.json_document import print_json
    from dsabench.cli.views.new_attention_text import next_steps, print_next

    files = new_files(name, out)
    write_new(files)
    if json:
        print_json({"files": [str(path) for path in files], "next": [command for _, command in next_steps(*files)]})
    else:
        print_next(*files)
