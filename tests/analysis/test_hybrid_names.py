"""Hybrids in tables: names that tell stacks apart, and the keys that all their layers keep."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from dsabench.analysis.variants import keys, label_variants
from dsabench.spec.run import validate


def run(attention: dict[str, Any], length: int = 64) -> dict[str, Any]:
    spec = validate({"length": length, "attention": attention}).model_dump(mode="json")["attention"]
    stored = {f"attention.{name}": json.dumps(value) for name, value in spec.items() if name != "kind"}
    done = {"run_id": str(attention), "status": "done", "length": length, "seed": 1, "val_loss": 1.0}
    return {**done, "attention": spec["kind"], **stored}


def named(*attentions: dict[str, Any]) -> list[str]:
    return list(label_variants(pd.DataFrame([run(one) for one in attentions]))["variant"])


def test_stacks_are_told_apart_by_what_differs() -> None:
    assert named({"kind": "dense"}, {"layers": ["dense", "dsa"]}) == ["dense", "hybrid"]
    two = {"layers": ["dense", "dsa", "dsa"]}, {"layers": ["dsa", "random"]}
    assert named(*two) == ["hybrid layers=dense,dsa*2", "hybrid layers=dsa,random"]
    three = [{"layers": ["dense", "dsa"], "top_k": 16, "indexer": {"n_heads": n}} for n in (1, 2)]
    assert named(*three) == ["hybrid layers=dense,dsa(n_heads=1)", "hybrid layers=dense,dsa(n_heads=2)"]
    inside = {"layers": ["dsa", {"kind": "dsa", "top_k": 4}], "top_k": 16}
    assert named(inside, two[1]) == [
        "hybrid layers=dsa(top_k=16),dsa(top_k=4)",
        "hybrid layers=dsa(top_k_ratio=0.5),random",
    ]


def test_keys_are_those_that_all_selecting_layers_keep() -> None:
    stacks: list[dict[str, Any]] = [
        {"layers": ["dense", "dsa"], "top_k": 16},
        {"layers": ["dsa", "random"], "top_k_ratio": 0.5},
        {"layers": ["dsa", {"kind": "dsa", "top_k": 4}], "top_k": 16},
        {"layers": ["dsa", {"kind": "dsa", "top_k": 400}], "top_k": 100},
        {"kind": "dense"},
    ]
    found = keys(pd.DataFrame([run(one) for one in stacks])).tolist()
    assert found[:2] == [16.0, 32.0]
    assert found[3] == 64.0, "every key of the window"
    assert pd.isna(found[2]) and pd.isna(found[4])
