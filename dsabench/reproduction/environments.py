"""Differences between two environments, and those among them that can change the bits of a result."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from dsabench.analysis.provenance import NO_ENVIRONMENT, TEXT_VERSIONS
from dsabench.spec.identity import flatten
from dsabench.store import RunRecord

_FIRST = (
    "device_name",
    "device",
    "precision",
    "deterministic",
    "threads",
    "data_parallel",
    "torch",
    "cuda",
    "cudnn",
    "driver",
    "cpu",
    "cpu_capability",
    "dsabench",
    "source",
)
"""Entries that are named first: the likeliest reasons for different bits."""

_HARMLESS = frozenset(
    (
        "concurrency",  # deterministic runs end on the same bits beside others
        "cpu_count",
        "packages.datasets",  # what they read has digests
        "packages.pandas",
        "packages.pyarrow",
        "packages.pydantic",
        "packages.safetensors",
    )
)

_EXECUTION = ("attention_backend", "micro_batch", "recompute")
"""Summary entries that say how a step was computed."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Change(NamedTuple):
    """An entry in which two runs differ; None where a run does not have it, or has null."""

    field: str
    a: Any
    b: Any


def environment_of(record: RunRecord) -> dict[str, Any]:
    """What a run recorded of its machine and versions, `dsabench`'s own among them, by dotted names; no nulls."""
    found = {name: value for name, value in record.environment.items() if name not in NO_ENVIRONMENT}
    found["dsabench"] = record.version
    found.setdefault("data_parallel", 1)
    return {name: value for name, value in flatten(found).items() if value is not None}


def environment_changes(a: RunRecord, b: RunRecord) -> list[Change]:
    """Entries in which the environments differ, the weightiest first."""
    return changes(environment_of(a), environment_of(b), _FIRST)


def changes(a: dict[str, Any], b: dict[str, Any], first: tuple[str, ...] = ()) -> list[Change]:
    """Entries in which two flat mappings differ: those named in `first`, then in alphabetical order. Null
    counts as absent."""
    place = {name: i for i, name in enumerate(first)}
    names = sorted(a.keys() | b.keys(), key=lambda name: (place.get(name, len(place)), name))
    return [Change(name, a.get(name), b.get(name)) for name in names if not _equal(a.get(name), b.get(name))]


def n_equal(a: dict[str, Any], b: dict[str, Any]) -> int:
    """How many entries two flat mappings share."""
    return sum(name in b and _equal(value, b[name]) for name, value in a.items())


def reasons(a: RunRecord, b: RunRecord) -> list[Change]:
    """Differences of environment and execution that can change the bits of a result."""
    found = [
        change
        for change in environment_changes(a, b)
        if not _is_harmless(change.field)
        and change.a is not None
        and change.b is not None
        and not change.field.startswith("git.")
        and not (change.field == "device" and _kind(change.a) == _kind(change.b))
    ]
    if any(change.field == "source" for change in found):
        found += [change for change in environment_changes(a, b) if change.field.startswith("git.")]
    ours, theirs = ({name: record.summary.get(name) for name in _EXECUTION} for record in (a, b))
    return found + [
        change for change in changes(ours, theirs, _EXECUTION) if change.a is not None and change.b is not None
    ]


def unrecorded(a: RunRecord, b: RunRecord) -> list[str]:
    """Entries that only one of the runs recorded, so that nobody can say whether they differ."""
    return [c.field for c in environment_changes(a, b) if (c.a is None or c.b is None) and not _is_harmless(c.field)]


def may_vary(record: RunRecord) -> bool:
    """Whether the run was computed in a way whose last bits vary from run to run: a GPU's, by default."""
    return _kind(record.environment.get("device")) == "cuda" and not record.environment.get("deterministic")


def remedies(changes: Iterable[Change]) -> list[str]:
    """What makes this machine as `a` says, of the changes that it can be done for."""
    return [
        f"OMP_NUM_THREADS={text(change.a)} gives the number of threads that the run had"
        for change in changes
        if change.field == "threads"
    ]


def text(value: Any) -> str:
    """A value in a line of text: floats to six digits, of a commit its first twelve."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)[: 12 if _COMMIT.fullmatch(str(value)) else None]


def _is_harmless(field: str) -> bool:
    # What the versions of a text change has the corpus's digest.
    return field in _HARMLESS or field.startswith(f"{TEXT_VERSIONS}.")


def _kind(device: Any) -> str:
    return str(device).partition(":")[0]


def _equal(a: Any, b: Any) -> bool:
    both_nan = a != a and b != b
    return both_nan or bool(a == b and isinstance(a, bool) == isinstance(b, bool))
