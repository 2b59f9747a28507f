"""Options that several commands share, each declared once, and their effect on a sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import COMPARISON, EXPERIMENT, MACHINE, OUTPUT, STORED
from dsabench.errors import StoreError

if TYPE_CHECKING:
    from dsabench.spec.run import RunSpec
    from dsabench.spec.sweep import Sweep

# What to run.
ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        help="A shipped config by name (`dsabench configs` lists them), or a YAML file.",
        metavar="NAME_OR_PATH",
        rich_help_panel=EXPERIMENT,
        autocompletion=completion.configs,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Set a field, e.g. train.steps=500; repeatable. `dsabench fields` lists them.",
        metavar="FIELD=VALUE",
        rich_help_panel=EXPERIMENT,
        autocompletion=completion.assignments,
    ),
]
LengthOption = Annotated[
    int | None, typer.Option("--length", help="Tokens in a window.", metavar="N", rich_help_panel=EXPERIMENT)
]
AttentionOption = Annotated[
    str | None,
    typer.Option(
        "--attention",
        help="Attention: dense, dsa, random, ..., or a plugin's.",
        metavar="NAME",
        rich_help_panel=EXPERIMENT,
        autocompletion=completion.attentions,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Training seed.", metavar="N", rich_help_panel=EXPERIMENT)
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Start from a trained model: a run, a folder of a run, or of transformers.",
        metavar="RUN|PATH|hf:NAME",
        rich_help_panel=EXPERIMENT,
        autocompletion=completion.runs,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Where to compute: auto, cpu, cuda, cuda:N or mps.",
        metavar="NAME",
        rich_help_panel=MACHINE,
        autocompletion=completion.devices,
    ),
]


def _refuse_plugins(context: typer.Context, wanted: bool) -> bool:
    if wanted:
        from dsabench.attention.plugins import no_plugins

        context.with_resource(no_plugins())  # until the command ends
    return wanted


NoPluginsFlag = Annotated[
    bool,
    typer.Option(
        "--no-plugins",
        callback=_refuse_plugins,
        help="Execute no plugin file, and refuse what names one.",
    ),
]

# Which stored runs.
StoreOption = Annotated[
    Path,
    typer.Option(
        "--store", envvar="DSABENCH_STORE", help="Folder that keeps every run.", metavar="DIR", rich_help_panel=STORED
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or the start of it.", autocompletion=completion.runs)
]
SweepOption = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="A sweep by its id or the start of it; else the newest.",
        metavar="ID",
        rich_help_panel=STORED,
        autocompletion=completion.sweeps,
    ),
]
AllFlag = Annotated[
    bool, typer.Option("--all", help="All runs of the store, whatever their sweep.", rich_help_panel=STORED)
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where", help="Only runs for which this holds, e.g. 'length == 256'.", metavar="QUERY", rich_help_panel=STORED
    ),
]
BaselineOption = Annotated[
    str,
    typer.Option(
        "--baseline",
        help="The attention (or variant) to compare with.",
        metavar="NAME",
        rich_help_panel=COMPARISON,
        autocompletion=completion.attentions,
    ),
]

# How to answer.
OutOption = Annotated[
    Path, typer.Option("--out", help="Folder for tables and pictures.", metavar="DIR", rich_help_panel=OUTPUT)
]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of a table.", rich_help_panel=OUTPUT)
]
QuietFlag = Annotated[
    bool, typer.Option("--quiet", "-q", help="No plan and no progress on stderr.", rich_help_panel=OUTPUT)
]


def run_fields(
    length: int | None, attention: str | None, seed: int | None, device: str | None
) -> dict[str, tuple[str, Any]]:
    """The fields that flags for a single run set, for `overridden`."""
    return {
        "--length": ("length", length),
        "--attention": ("attention.kind", attention),
        "--seed": ("seed", seed),
        "--device": ("engine.device", device),
    }


def start_at(trained: str | None, store: Path) -> dict[str, tuple[str, Any]]:
    """The field that `--from` sets, for `overridden`: a folder or `hf:NAME` is a checkpoint, anything else the id of a
    run, or the start of it. Raises StoreError for a run that is not there."""
    if trained is None:
        return {}
    if trained.startswith("hf:") or "/" in trained or os.sep in trained or Path(trained).is_dir():
        return {"--from": ("start", {"checkpoint": trained})}
    from dsabench.store import find_name

    try:
        return {"--from": ("start", {"run": find_name(store, trained)})}
    except StoreError as error:
        raise StoreError(f"--from {trained}: no folder of this name, and no run: {error}") from error


def overridden(
    config: str, sets: list[str] | None, fields: dict[str, tuple[str, Any]], axes: dict[str, tuple[str, Any]]
) -> Sweep:
    """The sweep of `config` after `--set`, then flags for single fields, then flags for axes.

    fields and axes: {flag: (field path, value)}; a value of None, a flag not given, changes nothing.
    """
    from dsabench.spec.config import load_sweep
    from dsabench.spec.override import parse_override

    sweep = load_sweep(config)
    # The attentions that are asked for say what the fields of the attention are; a plugin's must be known first.
    kind = "attention.kind"
    kinds = [value for path, value in fields.values() if path == kind and value is not None]
    kinds += [value for path, values in axes.values() if path == kind for value in values or []]
    kinds += [value for path, _, value in (text.partition("=") for text in sets or []) if path.strip() == kind]
    for text in sorted(sets or [], key=lambda text: text.partition("=")[0].strip() != "plugins"):
        path, value = parse_override(text, [*kinds, *sweep.kinds()])
        if path.startswith("tune."):
            sweep.set_tune({path.removeprefix("tune."): value}, lambda field: f"--set {field}: ")
            continue
        sweep.set(path, value, f"--set {path}: ")
    for flag, (path, value) in fields.items():
        if value is not None:
            sweep.set(path, value, f"{flag}: ")
    for flag, (path, value) in axes.items():
        if value is not None:
            sweep.set_axis(path, value, f"{flag}: ")
    return sweep


def one_run_each(sweep: Sweep, *several: str) -> list[RunSpec]:
    """The runs of the first rung, with all values of the axes `several` and the first of every other."""
    sweep = sweep.lowest()
    for path in sweep.axes:
        if path not in several:
            sweep.axes[path] = sweep.axes[path][:1]
    if "attention.kind" not in sweep.axes:
        sweep.first()  # refuses fields that were asked for and that this attention has not
    return sweep.runs()


def check_margin(margin: float | None) -> None:
    """A usage error unless `--margin` was left out or is a finite number above 0."""
    if margin is not None and not 0 < margin < float("inf"):
        raise typer.BadParameter(f"--margin {margin:g}: a number above 0 is accepted")


def check_out(out: Path) -> None:
    """StoreError when `--out` cannot become a folder that files can be written to; makes nothing."""
    for path in (out, *out.absolute().parents):
        if path.exists() and not path.is_dir():
            raise StoreError(f"--out {out}: {path} is a file; name a folder")
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise StoreError(f"--out {out}: {there} cannot be written to; name another folder")
