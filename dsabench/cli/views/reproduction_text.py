"""The result of `dsabench reproduce`, for a reader and as a JSON document."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from dsabench.cli.safe_text import first_line, printable
from dsabench.cli.views.runs_diff import print_changes, record_lines
from dsabench.cli.views.text_table import say
from dsabench.reproduction.difference import records_document
from dsabench.reproduction.environments import Change, remedies
from dsabench.reproduction.train_again import Reproduction


def document(found: Reproduction) -> dict[str, Any]:
    """The document of `reproduce --json`."""
    weights = found.weights
    return {
        "run_id": found.original.run_id,
        "verdict": found.verdict,
        "tolerance": found.tolerance,
        "status": found.original.status,
        "status_again": found.again.status,
        "error_again": found.again.error,
        **records_document(found.records),
        "weights": None
        if weights is None
        else {
            "tensors": weights.tensors,
            "same": weights.same,
            "largest_difference": weights.largest,
            "tensor": weights.name or None,
        },
        "step_ms": found.original.summary.get("step_ms"),
        "step_ms_again": found.again.summary.get("step_ms"),
        "environment": [change._asdict() for change in found.environment],
        "may_explain": [change._asdict() for change in found.reasons],
        "not_recorded_by_both": found.unrecorded,
        "last_bits_vary": found.may_vary,
        "store": None if found.kept is None else str(found.kept),
    }


def print_reproduction(found: Reproduction, store: Path, console: Console) -> None:
    """Print the verdict, the evidence for it, and what may explain a difference. `store` holds the original run."""
    original, again = found.original, found.again
    say(console, printable(f"{original.run_id}: {_verdict(found)}"), style="bold")
    if original.status != "done":
        say(console, f"  the run was {original.status}; compared as far as it came")
    if again.status != original.status and original.status != "interrupted":
        error = f": {first_line(again.error)}" if again.error else ""
        say(console, printable(f"  {original.status} then, {again.status} now{error}"))
    say(console, *(f"  {name:12}{line}" for name, line in _lines(found)))
    if found.verdict != "same bits":
        _print_reasons(found, console)
    if found.kept is not None:
        words = ["dsabench", "runs", "diff", original.run_id, "--other-store", str(found.kept)]
        words += [] if store == Path("runs") else ["--store", str(store)]
        say(console, printable(f"Kept in {found.kept}: {shlex.join(words)}"))


def _verdict(found: Reproduction) -> str:
    if found.tolerance is None or found.verdict == "same bits":
        return found.verdict
    if found.verdict == "within tolerance":
        return f"same within {found.tolerance:g} nats"
    return "differs" if found.records.within(found.tolerance) else f"differs, not within {found.tolerance:g} nats"


def _lines(found: Reproduction) -> Iterator[tuple[str, str]]:
    for i, line in enumerate(record_lines(found.records)):
        yield ("" if i else "records"), line
    weights = found.weights
    if weights is None:
        yield "weights", "not compared: no two checkpoints of the same step"
    else:
        yield "weights", f"{weights.same} of {weights.tensors} tensors the same bit for bit"
        if not weights.all_same:
            yield "", f"largest difference  {weights.largest:.2g}, {printable(weights.name)}"
    times = [run.summary.get("step_ms") for run in (found.original, found.again)]
    if all(isinstance(time, int | float) for time in times):
        yield "step time", f"{times[0]:.2f} ms then, {times[1]:.2f} ms now"


def _print_reasons(found: Reproduction, console: Console) -> None:
    reasons = found.reasons
    if found.may_vary:
        say(
            console,
            "It ran on a GPU without engine.deterministic: the last bits vary from run to run there, and grow with "
            "the steps. `--set engine.deterministic=true` trains a run that can be reproduced bit for bit.",
        )
    print_changes(console, "what may explain it", [Change(c.field, c.a, c.b) for c in reasons])
    say(console, *(f"  {remedy}." for remedy in remedies(reasons)))
    if not found.records.all_same and found.weights is not None and found.weights.all_same:
        say(
            console,
            "The final weights are the same, so the training was too: either its records were edited, or evaluation "
            "alone differs.",
        )
    elif not reasons and not found.may_vary:
        say(
            console,
            "Nothing in the recorded environments explains it: the same versions, device and threads. Either the "
            "records were edited, or a computation is not deterministic.",
        )
    if found.unrecorded:
        say(console, printable(f"Recorded by only one of the two: {', '.join(found.unrecorded)}."))
