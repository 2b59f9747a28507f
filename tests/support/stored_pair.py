"""A store with two small runs, and changes to what it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resealed import reseal

PLUGIN = """
from typing import Literal
from dsabench.attention.dense import Dense, DenseSpec
from dsabench.attention.registry import register

class MineSpec(DenseSpec):
    kind: Literal["mine"] = "mine"

@register
class Mine(Dense):
    spec_class = MineSpec
"""


def values(corpus: Path, **fields: Any) -> dict[str, Any]:
    return {
        "length": 16,
        "seed": 1,
        "attention": {"kind": "dense"},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "n_experts": 2, "experts_per_token": 1},
        "data": {"source": f"path:{corpus}", "tokenizer": "bytes", "val_share": 0.25},
        "train": {
            "steps": 12, "tokens_per_step": 64, "learning_rate": 1e-2, "warmup_steps": 2, "eval_every": 6,
            "eval_tokens": 256, "log_every": 3,
        },
        "engine": {"device": "cpu"},
        **fields,
    }  # fmt: skip


def folder(store: Path, start: str) -> Path:
    (found,) = store.glob(f"{start}-*")
    return found


def edit(path: Path, change: Callable[[dict[str, Any]], None], sealed: bool = True) -> None:
    """Change run.json, or every record of metrics.jsonl; sealed: as if it had been written so."""
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    for document in documents:
        change(document)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    if sealed:
        reseal(path.parent)


def contents(store: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def add_to(kind: str, step: int, metric: str, size: float) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        if (record["kind"], record["step"]) == (kind, step):
            record[metric] += size

    return change
