"""Output that several commands share: a run's outcome, a sweep's plan, the table and files after a sweep."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dsabench.cli.console import stdout_console as stdout_console
from dsabench.cli.progress import duration
from dsabench.errors import StoreError

if TYPE_CHECKING:
    from dsabench.engine.device import Execution
    from dsabench.engine.memory_plan import MemoryPlan
    from dsabench.spec.run import RunSpec
    from dsabench.spec.sweep import Sweep
    from dsabench.store import RunRecord
    from dsabench.sweeps.plan import PlannedRun


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN and infinities become null, which JSON can say."""
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False)
    # What could command a terminal, or has no encoding, as JSON's own escapes: the document stays the same.
    unusual = re.compile(r"[^\n -~]")
    print(unusual.sub(lambda c: c[0] if c[0].isprintable() else json.dumps(c[0])[1:-1], text))


def describe(record: RunRecord) -> str:
    """A run's outcome in one line."""
    if record.status != "done":
        return f"{record.status}: {record.error}" if record.error else record.status
    summary = record.summary
    parts = [f"done  val loss {_number(summary, 'val_loss', '.4f')}"]
    if summary.get("task_accuracy") is not None:
        chance = _number(summary, "chance_accuracy", ".1%")
        parts.append(f"task accuracy {_number(summary, 'task_accuracy', '.1%')} (chance {chance})")
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
    """The result of `train` for a reader."""
    summary = record.summary
    is_task = summary.get("task_accuracy") is not None
    unit = "nats per answer" if is_task else "nats per token"
    unigram, accuracy = _number(summary, "unigram_loss", ".4f"), _number(summary, "val_accuracy", ".2%")
    rows = [
        ("validation loss", _number(summary, "val_loss", ".4f"), unit),
        ("", _number(summary, "val_bits_per_byte", ".4f"), "bits per byte"),
        ("  guessing", unigram, f"{unit}, without the targets")
        if is_task
        else ("  unigram baseline", unigram, f"{unit}, the same windows"),
        ("task accuracy", accuracy, f"of answers, chance {_number(summary, 'chance_accuracy', '.2%')}")
        if is_task
        else ("accuracy", accuracy, "of next tokens"),
        ("training loss", _number(summary, "train_loss", ".4f"), f"{unit}, a fixed sample"),
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
        ("model FLOPs used", _number(summary, "mfu", ".1%"), "of the device's measured matrix-product rate"),
        (
            "parameters",
            _number(summary, "params", ",.0f"),
            f"of which indexer {_number(summary, 'indexer_params', ',.0f')}",
        ),
        ("peak memory", _number(summary, "peak_memory_mb", ",.0f"), "MB"),
    ]
    console = stdout_console()
    console.print(f"{record.run_id}: {record.status}{': ' + record.error if record.error else ''}")
    if record.status == "done":
        for name, value, unit in rows:
            if value != "-":
                console.print(f"  {name:20} {value:>12}  {unit}")
    console.print(f"  stored in {store / record.run_id}")


Fits = Sequence[tuple["RunSpec", "MemoryPlan"]]


def plan_document(
    planned: Sequence[PlannedRun],
    sweep: Sweep,
    seconds: float,
    fits: Fits,
    at_a_time: int,
    devices: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan of `sweep --dry-run --json`."""
    return {
        "sweep": sweep.plain(),
        "estimated_seconds": round(seconds),
        "devices": list(devices),
        "runs_at_a_time": at_a_time,
        "estimated_memory": [
            {
                "attention": spec.attention.model_dump(mode="json"),
                "length": spec.length,
                "micro_batch": plan.micro_batch,
                "recompute": plan.recompute,
                "bytes": {item: round(size) for item, size in plan.bytes.items()},
                "total_bytes": round(plan.total),
            }
            for spec, plan in fits
        ],
        "runs": [
            {"run_id": run.run_id, "status": run.status, "spec": run.spec.model_dump(mode="json")} for run in planned
        ],
    }


def print_plan(
    planned: Sequence[PlannedRun],
    sweep: Sweep,
    execution: Execution,
    seconds: float,
    fits: Fits,
    at_a_time: int,
    console: Console,
    *,
    devices: Sequence[str] = (),
    config: str = "",
    full: bool = False,
) -> None:
    """What a sweep will do, for how long, and what it will not repeat.

    devices: each with a worker process, where there are any.
    """
    done = sum(run.status == "done" for run in planned)
    first = planned[0].spec
    runs = "1 run" if len(planned) == 1 else f"{len(planned)} runs"
    where = ", ".join(devices) or execution.device
    console.print(f"{runs} of {first.train.steps} steps on {where} ({execution.precision}):")
    for path, values in sweep.axes.items():
        console.print(f"  {path:20} {', '.join(map(str, values))}")
    if sweep.ladder:
        console.print(f"  {'ladder':20} {', '.join(f'{i} {name}' for i, name in enumerate(sweep.ladder, 1))}")
    for length, batch, tokens in dict.fromkeys(
        (run.spec.length, run.spec.batch_size, run.spec.tokens_per_step) for run in planned
    ):
        selected = {run.spec.attention.n_selected(length) for run in planned if run.spec.length == length} - {None}
        keeps = (
            f", selecting variants keep {', '.join(map(str, sorted(filter(None, selected))))} keys" if selected else ""
        )
        console.print(f"  length {length}: {batch} windows a step = {tokens:,} tokens{keeps}")
    if first.train.warmup_steps >= first.train.steps:
        console.print(
            f"  note: train.warmup_steps = {first.train.warmup_steps} is not below train.steps = {first.train.steps}; "
            "the learning rate never reaches its peak"
        )
    if full:
        for run in planned:
            console.print(f"  {run.status:12} {run.run_id}")
        console.print("  (documents are checked to be long enough for a window when the sweep starts)")
    if fits and (full or execution.device.type == "cuda"):
        _print_memory(fits, at_a_time, console)
    todo = f"{done} of them are done already; " if done else ""
    console.print(f"{todo}estimated time: about {duration(seconds)} (rough)")
    if execution.device.type == "cpu" and seconds > 600 and config != "quick":
        console.print("This is long for a CPU; `dsabench sweep --config quick` is a smaller experiment for it.")


def _print_memory(fits: Fits, at_a_time: int, console: Console) -> None:
    """What the largest run takes, and which runs are cut to fit."""
    spec, plan = max(fits, key=lambda fit: fit[1].total)
    together = f", {at_a_time} runs at a time on a device" if at_a_time > 1 else ""
    parts = ", ".join(f"{item} {size / 1e9:.2f}" for item, size in plan.bytes.items() if size >= 0.01 * plan.total)
    console.print(f"memory: about {plan.total / 1e9:.2f} GB for {spec.attention.kind} at L={spec.length}{together}")
    console.print(f"  in GB: {parts}")
    for spec, plan in fits:
        if plan.micro_batch < spec.batch_size or plan.recompute:
            again = ", blocks computed again in the backward pass" if plan.recompute else ""
            console.print(
                f"  {spec.attention.kind} at L={spec.length}: {plan.micro_batch} of {spec.batch_size} windows at a "
                f"time{again}"
            )


def check_out(out: Path) -> None:
    """StoreError when `out` cannot become a folder that files can be written to; makes nothing."""
    for path in (out, *out.absolute().parents):
        if path.exists() and not path.is_dir():
            raise StoreError(f"--out {out}: {path} is a file; name a folder")
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise StoreError(f"--out {out}: {there} cannot be written to; name another folder")


def report_sweep(sweep_id: str, planned: Sequence[PlannedRun], store: Path, out: Path, as_json: bool) -> None:
    """Write the experiment's files and picture under `out`, and print its table (or summary.json) on stdout."""
    from dsabench.analysis.compare import compare, too_good
    from dsabench.analysis.pairing import find_pairs
    from dsabench.analysis.provenance import warnings
    from dsabench.analysis.results_table import experiment_table, not_averaged, write_results
    from dsabench.analysis.rungs import on_rungs, rungs_of
    from dsabench.analysis.scope import look_at
    from dsabench.analysis.variants import label_variants
    from dsabench.cli.views.compare_tables import comparison_lines
    from dsabench.cli.views.results_table_text import experiment_lines
    from dsabench.figures.sequence_length import sequence_length_comparison
    from dsabench.store import load_metrics, load_runs, read_sweep

    ids = [run.run_id for run in planned]
    runs = load_runs(store)
    runs = on_rungs(runs[runs["run_id"].isin(ids)], read_sweep(store, sweep_id))
    metrics = load_metrics(store, run_ids=ids)
    files = write_results(runs, metrics, out, sweep=sweep_id)
    files.append(sequence_length_comparison(runs, metrics, out / "sequence_length_comparison.png"))
    if as_json:
        print((out / "summary.json").read_text(encoding="utf-8"))
        return
    console = stdout_console()
    dense = bool((runs["attention"] == "dense").any())
    if rungs_of(runs) and runs["attention"].nunique() > 1 and dense:
        comparison_lines(compare(look_at(store, sweep=sweep_id)), console)
    else:
        experiment_lines(experiment_table(runs), console, not_averaged(runs))
        unbelievable = too_good(find_pairs(label_variants(runs), "dense").frame) if dense else []
        for line in [*unbelievable, *warnings(runs)]:
            console.print(f"WARNING: {line}.", soft_wrap=True)
    folders = dict.fromkeys(path.parent for path in files if path.parent != out)
    written = [*(path for path in files if path.parent == out), *folders]
    console.print(f"Written: {', '.join(map(str, written))}")
    console.print(f"Every run: {store} (pandas.read_parquet('{store / 'index.parquet'}'))")


def _number(summary: dict[str, Any], name: str, form: str) -> str:
    value = summary.get(name)
    if not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return format(value, form)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
