"""Options of `dsabench sweep` alone, and the examples of its help."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import COMPARISON, EXPERIMENT, MACHINE, OUTPUT, STORED
from dsabench.cli.list_options import integers, numbers, texts
from dsabench.cli.places import LauncherName
from dsabench.errors import SpecError
from dsabench.spec.override import parse_over
from dsabench.spec.sweep import Sweep


class OnOutOfMemory(StrEnum):
    """Answers to a run that finds too little memory."""

    FAIL = "fail"
    ACCUMULATE = "accumulate"


LengthsOption = Annotated[list[int] | None, integers("--lengths", "Window lengths.", rich_help_panel=EXPERIMENT)]
AttentionsOption = Annotated[
    list[str] | None,
    texts(
        "--attentions",
        "Attentions: dense, dsa, random, ..., or a plugin's.",
        rich_help_panel=EXPERIMENT,
        autocompletion=completion.attentions,
    ),
]
SeedsOption = Annotated[list[int] | None, integers("--seeds", "Training seeds.", rich_help_panel=EXPERIMENT)]
RatiosOption = Annotated[
    list[float] | None, numbers("--top-k-ratios", "Shares of the window kept.", rich_help_panel=EXPERIMENT)
]
RatesOption = Annotated[
    list[float] | None, numbers("--learning-rates", "Peak learning rates.", rich_help_panel=EXPERIMENT)
]
SourcesOption = Annotated[
    list[str] | None, texts("--sources", "Data sources.", metavar="SOURCE", rich_help_panel=EXPERIMENT)
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        "--margin",
        help="Loss in nats that still counts as not worse; kept with the sweep.",
        metavar="X",
        rich_help_panel=COMPARISON,
    ),
]
TuneOption = Annotated[
    int | None,
    typer.Option(
        "--tune",
        help="Trials for each variant that choose its settings before the seeds are trained; 'guide tuning'.",
        metavar="N",
        min=1,
        rich_help_panel=COMPARISON,
    ),
]
TuneOverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tune-over",
        help="What trials vary: train.learning_rate=1e-4..1e-2 or FIELD=A|B|C; repeatable.",
        metavar="FIELD=VALUES",
        rich_help_panel=COMPARISON,
    ),
]
DevicesOption = Annotated[
    list[str] | None,
    texts(
        "--devices",
        "A worker process on each: all, GPUs by number (0 1), or cpu.",
        metavar="DEVICE",
        rich_help_panel=MACHINE,
        autocompletion=completion.one_of("all", "cpu"),
    ),
]
LauncherOption = Annotated[
    LauncherName | None,
    typer.Option(
        "--launcher", metavar="ray", help="Train the runs on the nodes of a Ray cluster.", rich_help_panel=MACHINE
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Address of the Ray cluster; else it is this machine.",
        metavar="auto|HOST:PORT",
        rich_help_panel=MACHINE,
    ),
]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        help="Runs that share a GPU; default: 5 when steps are small, else 1.",
        metavar="N",
        min=1,
        rich_help_panel=MACHINE,
    ),
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and train nothing.", rich_help_panel=OUTPUT)
]
YesFlag = Annotated[
    bool, typer.Option("--yes", "-y", help="Ask nothing, however long it takes.", rich_help_panel=MACHINE)
]
RetryFlag = Annotated[bool, typer.Option("--retry-failed", help="Run stored failures again.", rich_help_panel=STORED)]
OnOomOption = Annotated[
    OnOutOfMemory,
    typer.Option(
        "--on-oom",
        metavar="fail|accumulate",
        help="When memory runs out: fail, or accumulate, which computes half of the windows at a time (the batch "
        "stays), for that run and all it is compared with.",
        rich_help_panel=MACHINE,
    ),
]

EXAMPLES = (
    ("A small experiment, minutes on two CPU cores", "dsabench sweep --config quick"),
    ("The experiment itself, minutes on a GPU: see its plan first", "dsabench sweep --lengths 64 128 256 --dry-run"),
    (
        "Other attentions and settings",
        "dsabench sweep --config quick --attentions dense dsa random \\\n  --seeds 1 2 3 --set train.steps=200",
    ),
    (
        "A file of your own, and the best learning rate of each",
        "dsabench sweep --config my.yaml --tune 8 \\\n  --tune-over train.learning_rate=1e-4..1e-2",
    ),
)


def tuned(sweep: Sweep, trials: int | None, over: list[str] | None) -> Sweep:
    """The sweep with the search that `--tune` and `--tune-over` ask for. Raises SpecError."""
    if trials is not None:
        sweep.set_tune({"trials": trials}, lambda path: "--tune: ")
    if over:
        if sweep.tune.trials is None:
            raise SpecError(
                f"--tune-over {over[0]} says what trials vary: give their number too, --tune 12 for example"
            )
        sweep.set_tune({"over": parse_over(over)}, lambda path: "--tune-over: ")
    return sweep
