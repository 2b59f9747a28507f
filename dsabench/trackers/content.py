"""The content of a run's record and metrics as a tracker takes it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dsabench.store.records import RunRecord, Scalar
from dsabench.store.table import clean, flatten
from dsabench.trackers.tracker import Point, Run

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")  # W&B hides what begins with _
_NO_METRICS = {"kind", "step"}
MOST_TEXT = 500
"""Characters of a text value; MLflow takes no more of a parameter in its older versions."""


def run_of(record: RunRecord) -> Run:
    """The run of a stored record."""
    spec: dict[str, Any] = {}
    flatten(record.spec, "", spec)
    environment: dict[str, Any] = {}
    flatten(record.environment, "environment.", environment)
    audit = record.environment.get("audit")
    # A summary says it at the end; what the audit found is known from the beginning.
    leak = record.summary.get("leak") is True or (isinstance(audit, dict) and audit.get("result") == "leak")
    texts = {"status": record.status, "sweep": record.sweep, "error": record.error, "version": record.version}
    texts |= {"leak": "LEAK"} if leak else {}
    summary = {safe(name): number for name, value in record.summary.items() if (number := _number(value)) is not None}
    return Run(
        run_id=record.run_id,
        name=f"LEAK-{record.run_id}" if leak else record.run_id,
        leak=leak,
        status=record.status,
        parameters={safe(name): _scalar(value) for name, value in spec.items()},
        summary=summary,
        tags={safe(k): _short(v) for k, v in {**environment, **texts}.items() if v is not None},
        started=record.created.timestamp(),
        updated=record.updated.timestamp(),
    )


def points_of(records: Iterable[Mapping[str, Any]], started: float) -> list[Point]:
    """The numbers of each record of metrics by `kind/name`; text, lists and missing values are left out."""
    points = []
    for record in records:
        numbers = {k: _number(v) for k, v in record.items() if k not in _NO_METRICS}
        seconds = numbers.get("seconds") or 0.0
        time = started + (seconds if 0 <= seconds < 1e9 else 0.0)
        kind = safe(record["kind"])
        values = {f"{kind}/{safe(k)}": number for k, number in numbers.items() if number is not None}
        points.append(Point(max(-(2**63), min(record["step"], 2**63 - 1)), time, values))
    return points


def safe(name: str) -> str:
    """`name` as every tracker takes it; what differs keeps differing, by a digest after what had to be changed."""
    if _NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9-]+', '_', name)[:60].strip('_-') or 'name'}.{digest}"


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _scalar(value: Scalar) -> Scalar:
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value)[:MOST_TEXT] if isinstance(value, int) and abs(value) >= 2**53 else value


def _short(value: Any) -> str:
    text = clean(str(value))
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 4]} ..."
