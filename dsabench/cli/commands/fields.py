"""`dsabench fields`: what a config can set, to read."""

from __future__ import annotations

from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import EXPERIMENT, LOOK_UP, HelpfulCommand, epilog
from dsabench.cli.options import JsonFlag, NoPluginsFlag

FilterArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FILTER",
        help="A part of the path (top_k), or a pattern ('train.*'); else all names on one screen.",
        show_default=False,
        autocompletion=completion.fields,
    ),
]
PluginsOfOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="Also the settings of the attentions that this config's plugins register.",
        metavar="NAME_OR_PATH",
        rich_help_panel=EXPERIMENT,
        autocompletion=completion.configs,
    ),
]
_EXAMPLES = (
    ("All names, on one screen", "dsabench fields"),
    ("Those with this in their path, explained", "dsabench fields top_k"),
    ("All of one part", "dsabench fields 'train.*'"),
    (
        "With the settings of the plugins of a config",
        "dsabench fields attention --config seed_replica",
    ),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "fields",
        cls=HelpfulCommand,
        short_help="Explain the fields of a config.",
        epilog=epilog("fields", *_EXAMPLES),
        rich_help_panel=LOOK_UP,
    )(fields)


def fields(
    filter: FilterArgument = None,
    config: PluginsOfOption = None,
    no_plugins: NoPluginsFlag = False,
    json: JsonFlag = False,
) -> None:
    """Explain the fields of a config: what each takes, its default and its meaning.

    A path such as train.steps names a field in a config, after --set and --where, under axes, and as a column.
    """
    from dsabench.cli.views import field_text
    from dsabench.cli.views.json_document import print_json
    from dsabench.spec.config import attention_settings
    from dsabench.spec.field_list import choose, sections

    found = sections(attention_settings(config))
    shown = found if filter is None else choose(found, filter)
    if json:
        print_json(field_text.document(shown))
    elif filter is None:
        field_text.print_names(shown)
    else:
        field_text.print_fields(shown)
