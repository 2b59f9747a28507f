"""Every figure of `dsabench plot` by name, which is that of its files too. `--help` lists them without matplotlib: only
what is drawn is imported."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dsabench.figures.data import Drawn, FigureData


FORMATS = ("png", "svg", "pdf")


class Kind(NamedTuple):
    """A figure that can be drawn."""

    what: str
    """What it shows, in a line."""

    function: str
    """`module:function` under dsabench.figures; the function takes FigureData and returns Drawn, or why it cannot."""

    former: str = ""
    """What its files were called in version 0.1, which is accepted for its name; empty for a younger figure."""

    of_tasks: bool = False
    """Whether only runs on a task have it."""

    of_copies: bool = False
    """Whether only runs on text have it, of version 0.7 on."""

    of_children: bool = False
    """Whether only runs that start from trained models have it."""

    of_sizes: bool = False
    """Whether only models of several sizes have it."""

    of_methods: bool = False
    """Whether it says something only of several attentions that read keys in different ways."""


MANY_METHODS = 4
"""Attentions, the baseline among them, from which on `methods` is drawn unasked."""

FIGURES = {
    "experiment": Kind(
        "loss, accuracy and step time against length", "sequence_length:four_panels", "sequence_length_comparison"
    ),
    "learning": Kind(
        "validation and training loss over training, and their gap", "learning:loss_by_step", "loss_by_step"
    ),
    "flops": Kind("loss against training FLOPs", "budget:loss_by_flops", "loss_by_flops"),
    "seconds": Kind("loss against training seconds", "budget:loss_by_seconds", "loss_by_seconds"),
    "conversion": Kind(
        "loss over tokens of parents and what starts from them",
        "conversion:loss_by_tokens",
        of_children=True,
    ),
    "positions": Kind(
        "loss by position in the window, where a leak shows", "positions:loss_by_position", "loss_by_position"
    ),
    "copies": Kind(
        "loss by how far back the same tokens stand",
        "copies:loss_by_copy_distance",
        of_copies=True,
    ),
    "sparsity": Kind("loss and mass recall against k/L", "sparsity:quality_by_sparsity", "quality_by_sparsity"),
    "methods": Kind(
        "loss against the keys that a query reads, and against step time",
        "keys_read:quality_by_keys_read",
        of_methods=True,
    ),
    "cost": Kind("step time and memory against length", "cost:cost_by_length", "cost_by_length"),
    "indexer": Kind(
        "indexer KL and mass recall over training", "indexer_learning:indexer_in_training", "indexer_in_training"
    ),
    "task": Kind(
        "task accuracy and target recall over training",
        "task_learning:task_in_training",
        "task_in_training",
        of_tasks=True,
    ),
    "sizes": Kind("difference and loss against size and FLOPs, fitted", "sizes:against_size", of_sizes=True),
    "forest": Kind("paired differences with verdicts", "forest:forest", "forest"),
}


def fitting(data: FigureData) -> list[str]:
    """The figures to draw of these runs when none is named: those of tasks where a run is of one, those of copies
    where they are recorded, those of children where one starts from a trained model, those of sizes where models have
    several, those of methods where there are at least MANY_METHODS, and all others."""
    from dsabench.analysis.children import STEPS
    from dsabench.store.curves import COPIES

    copies = bool(data.curves.frame[COPIES].notna().any())
    tasks = bool(data.done["task_accuracy"].notna().any())
    children = STEPS in data.runs and bool(data.runs.loc[data.runs["finished"], STEPS].notna().any())
    methods = data.done["attention"].nunique() >= MANY_METHODS
    sizes = data.baseline is not None and bool(data.comparison.sizes)
    left_out = {
        name
        for name, kind in FIGURES.items()
        if (kind.of_tasks and not tasks)
        or (kind.of_copies and not copies)
        or (kind.of_children and not children)
        or (kind.of_methods and not methods)
        or (kind.of_sizes and not sizes)
    }
    return [name for name in FIGURES if name not in left_out]


def draw(name: str, data: FigureData) -> Drawn | str:
    """The figure `name` of FIGURES, laid out; or why there is nothing to draw."""
    from dsabench.figures.style import settle, styled

    module, _, function = FIGURES[name].function.partition(":")
    with styled():
        drawn: Drawn | str = getattr(importlib.import_module(f"dsabench.figures.{module}"), function)(data)
        if not isinstance(drawn, str):
            for figure in drawn.pages:
                settle(figure)
    return drawn


FORMER_NAMES = {kind.former: name for name, kind in FIGURES.items() if kind.former}
"""Names of figures by what their files were called in version 0.1."""


def file_name(name: str, page: int, suffix: str) -> str:
    """`flops.png`; `flops-2.png` for its second page."""
    return name + (f"-{page}" if page > 1 else "") + f".{suffix}"
