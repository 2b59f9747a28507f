"""The metrics that each reader of the list takes, and their order there."""

from __future__ import annotations

from dsabench.metrics.entries import METRICS
from dsabench.metrics.metric import Metric

_MEANS = (
    *("val_bits_per_byte", "train_loss", "unigram_loss", "tokens_per_second", "mass_recall", "mass_recall_chance"),
    *("params", "indexer_params", "task_accuracy", "chance_accuracy", "target_recall_best", "target_recall_chance"),
)
_BESIDE = (
    *("mass_recall", "mass_recall_chance", "target_recall_best", "target_recall_chance"),
    *("task_accuracy", "chance_accuracy"),
)
"""Two files had these columns in an order of their own before there was this list, and keep it. A new metric needs no
place in them: it follows."""


def columns() -> dict[str, str]:
    """The metrics that the index always has as columns, with their dtypes."""
    return {metric.name: metric.dtype for metric in METRICS.values() if metric.dtype}


def compared() -> dict[str, Metric]:
    """The metrics that `compare --metric` takes."""
    return {metric.name: metric for metric in METRICS.values() if metric.compared}


def spreads() -> list[str]:
    """The metrics whose spread over seeds is reported."""
    return [metric.name for metric in METRICS.values() if metric.over_seeds == "spread"]


def means() -> list[str]:
    """The metrics of which the mean over seeds is reported, and no spread."""
    return _first(_MEANS, [metric.name for metric in METRICS.values() if metric.over_seeds in ("mean", "beside")])


def beside() -> list[Metric]:
    """The metrics whose mean stands beside every comparison."""
    found = [metric.name for metric in METRICS.values() if metric.over_seeds == "beside"]
    return [METRICS[name] for name in _first(_BESIDE, found)]


def drawn() -> list[str]:
    """The metrics of evaluations that figures over training draw, with their chances."""
    rows = {metric.name for metric in METRICS.values() if metric.figure}
    rows |= {METRICS[name].chance for name in rows}
    return [metric.name for metric in METRICS.values() if metric.name in rows and metric.source == "evaluation"]


def rows_of(figure: str, first: str) -> list[Metric]:
    """The metrics that are rows of a figure over training: `first`, then the others as they are listed."""
    found = [metric.name for metric in METRICS.values() if metric.figure == figure]
    return [METRICS[name] for name in _first((first,), found)]


def partners() -> set[str]:
    """The metrics that are another's chance."""
    return {metric.chance for metric in METRICS.values() if metric.chance}


def _first(order: tuple[str, ...], names: list[str]) -> list[str]:
    """The names in this order, others after them as they come."""
    return [*(name for name in order if name in names), *(name for name in names if name not in order)]
