"""Stores as runs would leave them, written without training: for analysis, plots and commands of any size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dsabench.metrics import METRICS
from dsabench.spec.identity import run_id
from dsabench.spec.run import RunSpec, validate
from dsabench.store import RunRecord, SweepRecord, write_sweep
from dsabench.store.layout import make_store

MACHINE = {"device": "cuda:0", "device_name": "NVIDIA H100 80GB HBM3", "precision": "bf16", "torch": "2.11.0"}
START = datetime(2026, 1, 1, tzinfo=UTC)


_OF_TASKS = [metric.name for metric in METRICS.values() if metric.runs == "task"]

TASK = {"task_accuracy": 0.9, "chance_accuracy": 0.05, "target_recall_best": 0.8, "target_recall_chance": 0.3}
"""A summary's values that make a run one of a task."""


def experiment(
    store: Path,
    *,
    lengths: Iterable[int] = (64, 128, 256),
    attentions: Iterable[dict[str, Any]] = ({"kind": "dense"}, {"kind": "dsa", "top_k_ratio": 0.5}),
    seeds: Iterable[int] = (42, 43, 44, 45, 46),
    effect: Callable[[RunSpec], float] = lambda spec: 0.0,
    noise: float = 0.005,
    sweep: str | None = "synthetic-00000000",
    margin: float = 0.02,
    train: dict[str, Any] | None = None,
    evaluations: int = 5,
    minutes: int = 0,
    **summary: Any,
) -> list[str]:
    """Write finished runs of every combination and their sweep; the run ids.

    The final loss is 4.4 + a seed's own offset + effect(spec) + noise: what a paired comparison must find.
    """
    ids = []
    for length in lengths:
        for seed in seeds:
            for attention in attentions:
                values = {"length": length, "seed": seed, "attention": attention, "train": train or {}}
                spec = validate(values)
                generator = np.random.default_rng([length, seed, len(json.dumps(attention))])
                loss = 4.4 + 0.03 * math.sin(seed) + effect(spec) + noise * generator.standard_normal()
                ids.append(
                    finished(store, spec, loss, sweep=sweep, evaluations=evaluations, minutes=minutes, **summary)
                )
    if sweep is not None:
        time = START + timedelta(minutes=minutes)
        spec_ = {"base": {}, "axes": {}, "verdict": {"margin": margin}}
        command = ["dsabench", "sweep"]
        record = SweepRecord(
            id=sweep, spec=spec_, run_ids=ids, command=command, environment=MACHINE, created=time, updated=time
        )
        write_sweep(store, record)
    return ids


PARENT = {"parent": {"attention.kind": "dense", "train.steps": 2000}}


def family(
    store: Path,
    attentions: Iterable[dict[str, Any]] = ({"kind": "dense"}, {"kind": "dsa", "top_k": 16}, {"kind": "random"}),
    *,
    length: int = 64,
    seeds: Iterable[int] = (1, 2, 3),
    gain: Callable[[RunSpec], float] = lambda spec: -0.1,
    scratch: bool = True,
) -> list[str]:
    """Write a dense parent for each seed, its children of 500 steps, dense and DSA from scratch, and their sweep; the
    ids of all but the parents.

    A child ends at its parent's loss plus gain(spec), and its training loss falls: with a gain above 0 it overfits.
    """
    ids = []
    for seed in seeds:
        own = 4.4 + 0.03 * math.sin(seed)
        long = {"length": length, "seed": seed, "train": {"steps": 2000}}
        parent = finished(store, validate({**long, "attention": {"kind": "dense"}}), own, evaluations=10)
        start = {"run": parent, "weights": f"{seed:064x}", "steps": 2000, "val_loss": own}
        for attention in attentions:
            values = {"length": length, "seed": seed, "attention": attention, "train": {"steps": 500}, "start": PARENT}
            spec = validate(values)
            end = own + gain(spec)
            curve = [(own + share * (end - own), own - 0.1 - 0.2 * share) for share in (0.0, 0.5, 1.0)]
            selects = spec.attention.n_selected(length) is not None
            ids.append(
                finished(
                    store,
                    spec,
                    end,
                    sweep="family-00000000",
                    environment={**MACHINE, "start": start},
                    curve=curve,
                    at_start={"conversion_loss": 0.25} if selects else {},
                )
            )
        for attention in ({"kind": "dense"}, {"kind": "dsa", "top_k": 16}) if scratch else ():
            values = {**long, "train": {"steps": 2500}, "attention": attention}
            ids.append(finished(store, validate(values), own - 0.2, sweep="family-00000000", evaluations=10))
    sweep = {"base": {}, "axes": {}, "verdict": {"margin": 0.02}}
    record = SweepRecord(
        id="family-00000000", spec=sweep, run_ids=ids, command=["dsabench", "sweep"], environment=MACHINE,
        created=START, updated=START,
    )  # fmt: skip
    write_sweep(store, record)
    return ids


def copies_of(spec: RunSpec, loss: float) -> dict[str, list[float]]:
    """Losses by copy distance: copies are easier, but for those that lie farther back than k; a single one is 1 token
    back."""
    k = spec.attention.n_selected(spec.length) or spec.length
    bins = range(1, (spec.length - 1).bit_length() + 1)
    losses = [loss + 0.1, *(9.0 if i == 1 else loss - 1 + (0.5 if 2 ** (i - 1) >= k else 0.0) for i in bins)]
    return {"loss_by_copy_distance": losses, "tokens_by_copy_distance": [5000, *(1 if i == 1 else 60 for i in bins)]}


def finished(
    store: Path,
    spec: RunSpec,
    loss: float,
    *,
    sweep: str | None = None,
    status: str = "done",
    evaluations: int = 5,
    minutes: int = 0,
    environment: dict[str, Any] | None = None,
    error: str | None = None,
    curve: Sequence[tuple[float, float]] = (),
    at_start: Mapping[str, float] = MappingProxyType({}),
    **summary: Any,
) -> str:
    """Write one run that ended with `status` at validation loss `loss`; its id.

    curve: validation and training loss of every evaluation, the one before the first step included; without it both
    fall. at_start: what that one has beside them.
    """
    evaluations = len(curve) - 1 if curve else evaluations
    make_store(store)
    identity = run_id(spec, {"corpus": "c0", "tokenizer": "t0"})
    folder = store / identity
    folder.mkdir(exist_ok=True)
    steps, k = spec.train.steps, spec.attention.n_selected(spec.length)
    step_ms = 4.0 + (0.01 * spec.length if k is not None else 0.0)
    flops = 1e9 * spec.tokens_per_step * steps * (1.25 if k is not None else 1.0)
    indexer = 332_288 if k is not None else 0
    selects = k is not None and k < spec.length
    recall = {"mass_recall": 0.9, "mass_recall_chance": 0.6} if selects else {}
    task = {name: summary[name] for name in _OF_TASKS if name in summary and (selects or "recall" not in name)}
    records: list[dict[str, Any]] = []
    for i in range(evaluations + 1):
        share = i / evaluations
        now = (
            curve[i][0]
            if curve
            else loss + 4.6 * math.exp(-6 * share) - 4.6 * math.exp(-6)
            if i < evaluations
            else loss
        )  # ln 8192 at first
        spent = {"seconds": share * steps * step_ms / 1e3, "flops": share * flops}
        common = {"step": round(share * steps), "stage": "sparse" if share > 0.2 else "dense", **spent}
        if i:
            records.append({"kind": "train", **common, "loss": now - 0.1, "kl": 0.3 - 0.2 * share if selects else None})
        bins = min(spec.length, 256)
        asked = bins // 2 if task else 0  # a task asks in the second half of its windows
        positions = [now + 1.0 / (1 + p) if p >= asked else None for p in range(bins)]
        records.append(
            {
                "kind": "eval",
                **common,
                "val_loss": now,
                "val_accuracy": 0.25,
                "val_bits_per_byte": now / 3,
                "train_loss": curve[i][1] if curve else now - 0.1,
                "unigram_loss": 6.75,
                "val_kl": 0.3 - 0.2 * share if selects else None,
                **{name: value * (0.5 + 0.5 * share) for name, value in recall.items()},
                "loss_by_position": positions,
                **({} if task else copies_of(spec, now)),
                **(at_start if i == 0 else {}),
                **{name: value * (1 if "chance" in name else share) for name, value in task.items()},
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="ascii")
    time = START + timedelta(minutes=minutes)
    totals = {
        "steps": steps,
        "params": 9_400_000 + indexer,
        "indexer_params": indexer,
        "k_effective": spec.attention.keys_read(spec.length),
        "vocab_size": 8192,
        "tokens_per_step": spec.tokens_per_step,
        "tokens": spec.tokens_per_step * steps,
        "text_tokens": 5_000_000,
        "flops": flops,
        "val_loss": loss,
        "val_accuracy": 0.25,
        "val_bits_per_byte": loss / 3,
        "train_loss": curve[-1][1] if curve else loss - 0.1,
        "unigram_loss": 6.75,
        **recall,
        "step_ms": step_ms,
        "tokens_per_second": spec.tokens_per_step / step_ms * 1e3,
        "train_seconds": steps * step_ms / 1e3,
        "peak_memory_mb": 1500.0 if k is not None else 1000.0,
        "leak": False,
    }
    record = RunRecord(
        run_id=identity,
        status=status,
        spec=spec.model_dump(mode="json"),
        fingerprint={"corpus": "c0", "tokenizer": "t0"},
        environment=MACHINE if environment is None else environment,
        summary={**totals, **{name: value for name, value in summary.items() if name not in _OF_TASKS}, **task}
        if status == "done"
        else {},
        error=error,
        sweep=sweep,
        created=time,
        updated=time,
    )
    (folder / "run.json").write_bytes(record.to_json())
    return identity
