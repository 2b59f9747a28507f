"""`dsabench configs`: the shipped experiments by name."""

from __future__ import annotations

from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import LOOK_UP, HelpfulCommand, epilog
from dsabench.cli.options import JsonFlag

ConfigArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="A config to print, as its file; else the list of all.",
        show_default=False,
        autocompletion=completion.configs,
    ),
]
_EXAMPLES = (
    ("The list", "dsabench configs"),
    ("One of them as a file of your own, to change", "dsabench configs quick > my.yaml"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "configs",
        cls=HelpfulCommand,
        short_help="List the shipped experiments, or print one.",
        epilog=epilog("experiment", *_EXAMPLES),
        rich_help_panel=LOOK_UP,
    )(configs)


def configs(name: ConfigArgument = None, json: JsonFlag = False) -> None:
    """List the experiments that come with dsabench, or print one of them.

    `--config NAME` of train, sweep, audit and profile takes their names.
    """
    from dsabench.cli.views import config_list
    from dsabench.cli.views.json_document import print_json
    from dsabench.spec.config import config_path, shipped_configs

    found = shipped_configs() if name is None else {name: config_path(name)}
    if json:
        print_json(config_list.document(found))
    elif name is None:
        config_list.print_configs(found)
    else:
        print(found[name].read_text(encoding="utf-8"), end="")
