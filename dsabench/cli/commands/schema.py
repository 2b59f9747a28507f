"""`dsabench schema`: the JSON Schemas of a config and of what commands print with --json."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from dsabench.cli.command_help import LOOK_UP, HelpfulCommand, epilog

_EXAMPLES = (
    ("Config files, for an editor that checks them", "dsabench schema > dsabench.schema.json"),
    ("The document of `dsabench compare --json`", "dsabench schema compare"),
)


class Document(StrEnum):
    """The documents that have a schema."""

    config = "config"
    compare = "compare"
    bench = "bench"
    verify = "verify"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "schema",
        cls=HelpfulCommand,
        epilog=epilog("fields", *_EXAMPLES),
        rich_help_panel=LOOK_UP,
    )(schema)


def schema(
    of: Annotated[
        Document,
        typer.Argument(
            metavar="config|compare|bench|verify",
            help="config (what --config reads); compare, bench or runs verify (what these print with --json).",
        ),
    ] = Document.config,
) -> None:
    """Print a JSON Schema.

    For editors and programs. `dsabench fields` shows the fields of a config for reading.
    """
    import json

    if of is Document.compare:
        from dsabench.analysis.comparison import Comparison

        found = Comparison.model_json_schema(mode="serialization")
    elif of is Document.bench:
        from dsabench.bench.document import Document as Bench

        found = Bench.model_json_schema(mode="serialization")
    elif of is Document.verify:
        from dsabench.store import StoreHealth

        found = StoreHealth.model_json_schema(mode="serialization")
    else:
        from dsabench.spec.schema import config_schema

        found = config_schema()
    print(json.dumps(found, indent=2))
