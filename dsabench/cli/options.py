"""Options that several commands share, and how they change a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[
    str,
    typer.Option(
        "--config",
        help="A shipped config by name (seed, quick, honest, recall, ...) or a YAML file.",
        metavar="NAME_OR_PATH",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Set a field, e.g. train.steps=500; repeatable. `dsabench schema` lists them.",
        metavar="FIELD=VALUE",
    ),
]
Store = Annotated[
    Path, typer.Option("--store", envvar="DSABENCH_STORE", help="Folder that keeps every run.", metavar="DIR")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for tables and pictures.", metavar="DIR")]
Sweep = Annotated[
    str | None, typer.Option("--sweep", help="A sweep by its id or the start of it; else the newest.", metavar="ID")
]
All = Annotated[bool, typer.Option("--all", help="All runs of the store, whatever their sweep.")]
Where = Annotated[
    str | None,
    typer.Option("--where", help="Only runs for which this holds, e.g. 'length == 256'.", metavar="QUERY"),
]
Baseline = Annotated[
    str, typer.Option("--baseline", help="The attention (or variant) to compare with.", metavar="NAME")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", metavar="NAME")]


def _refuse_plugins(context: typer.Context, wanted: bool) -> bool:
    if wanted:
        from dsabench.attention.plugins import no_plugins

        context.with_resource(no_plugins())  # until the command ends
    return wanted


NoPlugins = Annotated[
    bool,
    typer.Option(
        "--no-plugins",
        callback=_refuse_plugins,
        help="Execute no plugin file: what names one is refused.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No plan and no progress on stderr.")]


def overridden(
    config: str, sets: list[str] | None, fields: dict[str, tuple[str, Any]], axes: dict[str, tuple[str, Any]]
) -> Any:
    """The sweep of `config` after `--set`, then flags for single fields, then flags for axes.

    fields and axes: {flag: (field path, value)}; a value of None, a flag not given, changes nothing.
    """
    from dsabench.spec.config import load_sweep, parse_override

    sweep = load_sweep(config)
    overrides = [parse_override(text) for text in sets or []]
    for path, value in sorted(overrides, key=lambda item: item[0] != "plugins"):  # a plugin's kind must be known first
        sweep.set(path, value, f"--set {path}: ")
    for flag, (path, value) in fields.items():
        if value is not None:
            sweep.set(path, value, f"{flag}: ")
    for flag, (path, value) in axes.items():
        if value is not None:
            sweep.set_axis(path, value, f"{flag}: ")
    return sweep
