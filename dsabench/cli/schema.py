"""`dsabench schema`: the JSON Schema of a config file, with every field's documentation."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("schema")(schema)


def schema() -> None:
    """Print the JSON Schema of config files.

    For editors, and to read: each field's description is its documentation.
    """
    import json

    from dsabench.spec.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
