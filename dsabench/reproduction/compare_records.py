"""The comparison of two runs' records, step by step, and of their last weights. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from dsabench.errors import StoreError

SUMMARY = "summary"
"""Kind of the one record that a run's summary is compared as."""

LOSSES = {"train": ("loss",), "eval": ("val_loss", "train_loss"), SUMMARY: ("val_loss", "train_loss")}
"""Kinds of records and their losses in nats, which a tolerance applies to."""

_NOT_COMPUTED = frozenset(("kind", "step", "stage", "shared", "seconds", "eval_seconds", "tokens_per_second", "flops"))
"""Values of a record that are not compared, because training does not compute with them: times, counts of FLOPs."""

_MEASURED = frozenset(
    (
        *("kind", "step", "micro_batch", "peak_memory_mb", "step_ms", "warmup_step_ms", "tokens_per_second", "mfu"),
        *("matmul_flops_per_second", "train_seconds", "eval_seconds", "seconds", "other_load"),
    )
)
"""Values of a summary that are not compared: times, memory, and what follows from the memory that was free."""

_FLOORS = frozenset(("chance_accuracy", "unigram_loss"))
"""Of a task they follow from its settings, and earlier versions computed them in another way."""


class Deviation(NamedTuple):
    """A recorded value that differs between two runs; None where a run does not have it."""

    kind: str
    step: int
    metric: str
    a: float | None
    b: float | None

    @property
    def size(self) -> float:
        """|b - a|; infinite when only one of them is a number."""
        if self.a is None or self.b is None:
            return math.inf
        difference = abs(self.b - self.a)
        return difference if math.isfinite(difference) else math.inf

    @property
    def is_loss(self) -> bool:
        """Whether it is a loss, in nats."""
        return self.metric in LOSSES.get(self.kind, ())


@dataclass(frozen=True)
class Records:
    """The train and eval records of two runs, and their summaries, those of the first beside those of the second."""

    counts: dict[str, int]
    """Records of the first run, by kind."""

    same: int
    """How many of them the second run has with the same bits, times left out."""

    last_step: int
    """The last step of which the first run has a record."""

    first: Deviation | None
    """In the first record that differs: the loss, or else the first value that is not the same."""

    largest: Deviation | None
    """The loss with the largest difference; None when all losses are the same."""

    missing: tuple[tuple[str, int], ...]
    """(kind, step) of records that the second run lacks."""

    extra: tuple[tuple[str, int], ...]
    """(kind, step) of those that only the second has."""

    @property
    def total(self) -> int:
        """Records of the first run."""
        return sum(self.counts.values())

    @property
    def all_same(self) -> bool:
        """Whether they agree bit for bit."""
        return self.same == self.total and not self.extra

    def within(self, tolerance: float) -> bool:
        """Whether every record has its partner, and no loss is further off than `tolerance` nats."""
        return not self.missing and not self.extra and (self.largest is None or self.largest.size <= tolerance)


def compare_records(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], whole: bool = True) -> Records:
    """Compare the records of two runs by kind and step.

    A value is compared when both records name it, so that a newer version may record more. `whole`: the first run
    came to its end; otherwise what the second recorded after it is no difference.
    """
    ours, theirs = _by_place(a), _by_place(b)
    last = max((step for _, step in ours), default=0)
    found: list[Deviation] = []
    differing: set[tuple[str, int]] = set()
    for place in ours.keys() & theirs.keys():
        deviations = list(_deviations(*place, ours[place], theirs[place]))
        found += deviations
        if deviations:
            differing.add(place)
    order = {place: i for i, place in enumerate(ours)}
    found.sort(key=lambda one: (order[one.kind, one.step], not one.is_loss))
    losses = [one for one in found if one.is_loss]
    return Records(
        counts={k: n for k in LOSSES if (n := sum(place[0] == k for place in ours)) or k != SUMMARY},
        same=len(ours.keys() & theirs.keys()) - len(differing),
        last_step=last,
        first=found[0] if found else None,
        largest=max(losses, key=lambda one: one.size, default=None),
        missing=tuple(place for place in ours if place not in theirs),
        extra=tuple(place for place in theirs if place not in ours and (whole or place[1] <= last)),
    )


def summary_record(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run that is done as a record of its last step."""
    steps = summary.get("steps")
    return {**summary, "kind": SUMMARY, "step": steps if type(steps) is int else 0}


def _by_place(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    return {(record["kind"], record["step"]): record for record in records if record["kind"] in LOSSES}


def _deviations(kind: str, step: int, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterable[Deviation]:
    left_out = _MEASURED if kind == SUMMARY else _NOT_COMPUTED
    left_out = left_out if a.get("chance_accuracy") is None else left_out | _FLOORS
    for name in a:
        if name in left_out or name not in b:
            continue
        ours, theirs = a[name], b[name]
        if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
            pairs = [(f"{name}[{i}]", x, y) for i, (x, y) in enumerate(zip(ours, theirs, strict=True))]
        else:
            pairs = [(name, ours, theirs)]
        for metric, x, y in pairs:
            if not _same_bits(x, y):
                yield Deviation(kind, step, metric, _number(x), _number(y))


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # JSON knows whole numbers beyond every float
        return math.inf if value > 0 else -math.inf


def _same_bits(a: Any, b: Any) -> bool:
    """JSON gives floats back to the last bit; 0.0 is not -0.0, and NaN is NaN."""
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()
    return bool(a == b)


@dataclass(frozen=True)
class Weights:
    """The parameters of two checkpoints."""

    tensors: int
    """Tensors of the first."""

    same: int
    """How many of them the second has with the same bits."""

    largest: float
    """Largest absolute difference of a weight; infinite where shapes or names do not agree, or one is not finite."""

    name: str
    """The parameter with that difference; empty when all are the same."""

    @property
    def all_same(self) -> bool:
        """Whether they agree bit for bit."""
        return not self.name


def check_weights_file(folder: Path) -> None:
    """Raise StoreError when a checkpoint's weights cannot be read."""
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def compare_weights(a: Path, b: Path) -> Weights:
    """Compare `model.safetensors` of two checkpoint folders, a tensor at a time.

    Raises:
        StoreError: one of them cannot be read.
    """
    same, largest, worst = 0, 0.0, ""
    paths = [folder / "model.safetensors" for folder in (a, b)]
    for folder in (a, b):
        check_weights_file(folder)
    with safe_open(paths[0], framework="numpy") as ours, safe_open(paths[1], framework="numpy") as theirs:
        names, others = list(ours.keys()), set(theirs.keys())
        for name in names:
            if name in others:
                x, y = ours.get_tensor(name), theirs.get_tensor(name)
                if x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes():
                    same += 1
                    continue
                size = _largest(x, y)
            else:
                size = math.inf
            if not worst or size > largest:
                largest, worst = size, name
        if extra := sorted(others - set(names)):
            largest, worst = math.inf, extra[0]
    return Weights(len(names), same, largest, worst)


def _largest(x: np.ndarray, y: np.ndarray) -> float:
    if x.shape != y.shape:
        return math.inf
    size = float(np.max(np.abs(x.astype(np.float64) - y.astype(np.float64)), initial=0.0))
    return size if math.isfinite(size) else math.inf
