"""`dsabench profile`: where the time of one training step goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli.list_options import ListCommand, integers, texts
from dsabench.cli.options import Config, Device, Json, NoPlugins, Out, Quiet, Set, overridden

if TYPE_CHECKING:
    from dsabench.spec.run import RunSpec
    from dsabench.spec.sweep import Sweep

_STAGES = ("sparse", "dense", "both")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("profile", cls=ListCommand)(profile)


def profile(
    config: Config = "seed",
    length: Annotated[int | None, typer.Option(help="Tokens in a window.", metavar="N")] = None,
    attention: Annotated[
        str | None, typer.Option(help="dense, dsa, random, ..., or a plugin's.", metavar="NAME")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Training seed.", metavar="N")] = None,
    lengths: Annotated[list[int] | None, integers("--lengths", "Window lengths; else the config's first.")] = None,
    attentions: Annotated[list[str] | None, texts("--attentions", "Attentions; else all of the config.")] = None,
    stage: Annotated[
        str, typer.Option(help="Of a selecting attention: sparse, dense or both.", metavar="NAME")
    ] = "sparse",
    steps: Annotated[
        int | None, typer.Option(help="Steps to time; else 300 on a GPU, 30 on a CPU.", metavar="N", min=1)
    ] = None,
    sets: Set = None,
    device: Device = None,
    out: Out = Path("results"),
    no_plugins: NoPlugins = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show where the time of one training step goes.

    Times steps as the engine runs them, splits them by part of the model, and writes a trace of each case under --out
    (trace.json.gz, for ui.perfetto.dev). A few steps from initial weights; nothing is stored.
    """
    if stage not in _STAGES:
        raise typer.BadParameter(f"--stage {stage}: accepted are {', '.join(_STAGES)}")
    for one, single, several in (("length", length, lengths), ("attention", attention, attentions)):
        if single is not None and several is not None:
            raise typer.BadParameter(f"--{one} and --{one}s exclude each other; keep one")
    fields = {
        "--length": ("length", length),
        "--attention": ("attention.kind", attention),
        "--seed": ("seed", seed),
        "--device": ("engine.device", device),
    }
    axes = {"--lengths": ("length", lengths), "--attentions": ("attention.kind", attentions)}
    specs = _specs(overridden(config, sets, fields, axes), all_lengths=lengths is not None)

    from dsabench.cli.progress import stderr_console
    from dsabench.cli.views.outcome import check_out, print_json, stdout_console

    check_out(out)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler writes its starts to stderr
    import torch

    from dsabench.cli.views.profile_tables import profile_document, profile_lines
    from dsabench.engine.device import resolve
    from dsabench.engine.profiling.profiler import profile_cases
    from dsabench.engine.profiling.result import cases_of

    log = stderr_console()
    execution = resolve(specs[0].engine)
    try:
        profiles = profile_cases(
            cases_of(specs, stage),
            out / "profile",
            execution,
            steps,
            notify=(lambda message: None) if quiet else log.print,
        )
    except torch.OutOfMemoryError as error:
        log.print(f"error: out of GPU memory: {str(error).splitlines()[0]} Lower train.tokens_per_step or the length")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if json:
        print_json(profile_document(profiles, execution))
    else:
        profile_lines(profiles, execution, stdout_console())


def _specs(sweep: Sweep, all_lengths: bool) -> list[RunSpec]:
    """The first value of every axis but the attention's kind, and the length's where they were asked for; on the
    first rung of a ladder."""
    sweep = sweep.lowest()
    for path in sweep.axes:
        if path != "attention.kind" and not (path == "length" and all_lengths):
            sweep.axes[path] = sweep.axes[path][:1]
    if "attention.kind" not in sweep.axes:
        sweep.first()  # refuses fields that were asked for and that this attention has not
    return sweep.runs()
