"""`dsabench profile`: the time of one training step, part by part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import CHECKS, EXPERIMENT, MEASUREMENT, epilog
from dsabench.cli.list_options import ListCommand, integers, texts
from dsabench.cli.options import (
    AttentionOption,
    ConfigOption,
    DeviceOption,
    JsonFlag,
    LengthOption,
    NoPluginsFlag,
    OutOption,
    QuietFlag,
    SeedOption,
    SetOption,
    check_out,
    one_run_each,
    overridden,
    run_fields,
)

_STAGES = ("sparse", "dense", "both")

LengthsOption = Annotated[
    list[int] | None, integers("--lengths", "Window lengths; else the config's first.", rich_help_panel=EXPERIMENT)
]
AttentionsOption = Annotated[
    list[str] | None,
    texts(
        "--attentions",
        "Attentions; else all of the config.",
        rich_help_panel=EXPERIMENT,
        autocompletion=completion.attentions,
    ),
]
StageOption = Annotated[
    str,
    typer.Option(
        "--stage",
        help="Of a selecting attention: sparse, dense or both.",
        metavar="NAME",
        rich_help_panel=MEASUREMENT,
        autocompletion=completion.one_of("sparse", "dense", "both"),
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        help="Steps to time; else 300 on a GPU, 30 on a CPU.",
        metavar="N",
        min=1,
        rich_help_panel=MEASUREMENT,
    ),
]

_EXAMPLES = (
    ("Every attention of an experiment at two lengths", "dsabench profile --config quick --lengths 64 256 --steps 10"),
    ("DSA in its dense warm-up and after it", "dsabench profile --config quick --attention dsa --stage both"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("profile", cls=ListCommand, epilog=epilog("speed", *_EXAMPLES), rich_help_panel=CHECKS)(profile)


def profile(
    config: ConfigOption = "seed",
    length: LengthOption = None,
    attention: AttentionOption = None,
    seed: SeedOption = None,
    lengths: LengthsOption = None,
    attentions: AttentionsOption = None,
    stage: StageOption = "sparse",
    steps: StepsOption = None,
    sets: SetOption = None,
    device: DeviceOption = None,
    out: OutOption = Path("results"),
    no_plugins: NoPluginsFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Show where the time of one training step goes.

    Times steps as the engine runs them, splits them by part of the model, and writes a trace of each case under --out
    (trace.json.gz, for ui.perfetto.dev). A few steps from initial weights; nothing is stored.
    """
    if stage not in _STAGES:
        raise typer.BadParameter(f"--stage {stage}: accepted are {', '.join(_STAGES)}")
    for one, single, many in (("length", length, lengths), ("attention", attention, attentions)):
        if single is not None and many is not None:
            raise typer.BadParameter(f"--{one} and --{one}s exclude each other; keep one")
    fields = run_fields(length, attention, seed, device)
    axes = {"--lengths": ("length", lengths), "--attentions": ("attention.kind", attentions)}
    several = ["attention.kind"] if lengths is None else ["attention.kind", "length"]
    specs = one_run_each(overridden(config, sets, fields, axes), *several)
    check_out(out)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler writes its starts to stderr
    import torch

    from dsabench.cli.console import notifier, stderr_console, stdout_console
    from dsabench.cli.views.json_document import print_json
    from dsabench.cli.views.profile_tables import profile_document, profile_lines
    from dsabench.engine.device import resolve
    from dsabench.engine.profiling.profiler import profile_cases
    from dsabench.engine.profiling.result import cases_of

    execution = resolve(specs[0].engine)
    try:
        profiles = profile_cases(cases_of(specs, stage), out / "profile", execution, steps, notify=notifier(quiet))
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        stderr_console().print(f"error: out of GPU memory: {reason} Lower train.tokens_per_step or the length")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if json:
        print_json(profile_document(profiles, execution))
    else:
        profile_lines(profiles, execution, stdout_console())
