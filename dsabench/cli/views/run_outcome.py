"""The outcome of one training run: in one line after it, and as the result of `dsabench train`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsabench.cli.console import stdout_console
from dsabench.cli.safe_text import printable
from dsabench.metrics import METRICS, recorded_epochs

if TYPE_CHECKING:
    from dsabench.store import RunRecord


FLOOR = METRICS["chance_accuracy"].title


def describe(record: RunRecord) -> str:
    """A run's outcome in one line."""
    if record.status != "done":
        return f"{record.status}: {record.error}" if record.error else record.status
    summary = record.summary
    parts = [f"done  val loss {_number(summary, 'val_loss', '.4f')}"]
    if summary.get("task_accuracy") is not None:
        floor = _number(summary, "chance_accuracy", ".1%")
        parts.append(f"task accuracy {_number(summary, 'task_accuracy', '.1%')} ({FLOOR} {floor})")
    if summary.get("step_ms") is not None:
        parts.append(f"{_number(summary, 'step_ms', '.2f')} ms/step")
    if summary.get("target_recall_best") is not None:
        chance = _number(summary, "target_recall_chance", ".2f")
        parts.append(f"target recall {_number(summary, 'target_recall_best', '.2f')} (chance {chance})")
    elif summary.get("mass_recall") is not None:
        chance = _number(summary, "mass_recall_chance", ".2f")
        parts.append(f"mass recall {_number(summary, 'mass_recall', '.2f')} (chance {chance})")
    return "  ".join(parts)


def print_run(record: RunRecord, store: Path) -> None:
    """Print the result of `train`."""
    console = stdout_console()
    console.print(f"{record.run_id}: {record.status}{': ' + record.error if record.error else ''}")
    for line in measure_lines(record) if record.status == "done" else ():
        console.print(line)
    if origin := origin_text(record):
        console.print(f"  from {origin}", markup=False)
    console.print(f"  stored in {store / record.run_id}")


def origin_text(record: RunRecord) -> str:
    """The trained model that a run started from, in words; "" where its weights were drawn."""
    about = record.environment.get("start")
    if not isinstance(about, dict):
        return ""
    name = about.get("run") or about.get("checkpoint") or "a checkpoint"
    if about.get("model"):
        return printable(f"{name} ({about['model']} that others trained; weights {str(about.get('weights'))[:12]})")
    loss = _number(about, "val_loss", ".4f")
    own = "" if loss == "-" else f", val loss {loss}"
    weights = str(about.get("weights"))[:12]
    return printable(f"{name} ({_number(about, 'steps', ',.0f')} steps behind it{own}; weights {weights})")


def measure_lines(record: RunRecord) -> list[str]:
    """A line for each measure of a run, with its unit, and its chance or floor where it has one."""
    summary = record.summary
    is_task = summary.get("task_accuracy") is not None
    seen = recorded_epochs(summary, record.environment)
    unit = "nats per answer" if is_task else "nats per token"
    unigram, accuracy = _number(summary, "unigram_loss", ".4f"), _number(summary, "val_accuracy", ".2%")
    rows = [
        ("validation loss", _number(summary, "val_loss", ".4f"), unit),
        ("", _number(summary, "val_bits_per_byte", ".4f"), "bits per byte"),
        (f"  {FLOOR}", unigram, f"{unit} (dsabench guide tasks)")
        if is_task
        else ("  unigram baseline", unigram, f"{unit}, the same windows"),
        ("task accuracy", accuracy, f"of answers, {FLOOR} {_number(summary, 'chance_accuracy', '.2%')}")
        if is_task
        else ("accuracy", accuracy, "of next tokens"),
        ("training loss", _number(summary, "train_loss", ".4f"), f"{unit}, a fixed sample"),
        (METRICS["epochs"].words, "-" if seen is None else METRICS["epochs"].text(seen), METRICS["epochs"].meaning),
        (
            "target recall",
            _number(summary, "target_recall_best", ".3f"),
            f"of the best layer, chance {_number(summary, 'target_recall_chance', '.3f')}",
        ),
        (
            "mass recall",
            _number(summary, "mass_recall", ".3f"),
            f"chance {_number(summary, 'mass_recall_chance', '.3f')}",
        ),
        (
            "step",
            _number(summary, "step_ms", ".2f"),
            f"ms, {_number(summary, 'tokens_per_second', ',.0f')} tokens/s",
        ),
        ("model FLOPs used", _number(summary, "mfu", ".1%"), "of the measured matrix-product rate"),
        (
            "parameters",
            _number(summary, "params", ",.0f"),
            f"of which indexer {_number(summary, 'indexer_params', ',.0f')}",
        ),
        ("peak memory", _number(summary, "peak_memory_mb", ",.0f"), "MB"),
    ]
    return [f"  {name:20} {value:>12}  {unit}" for name, value, unit in rows if value != "-"]


def _number(summary: dict[str, Any], name: str, form: str) -> str:
    value = summary.get(name)
    if not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return format(value, form)
