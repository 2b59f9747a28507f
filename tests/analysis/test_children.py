"""Notes of a comparison whose runs start from trained models: the parents' losses, and tokens of the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.analysis.children import backbone_tokens, child_notes, worse_than_parents
from dsabench.analysis.compare import compare
from dsabench.analysis.pairing import find_pairs
from dsabench.analysis.scope import look_at
from dsabench.analysis.variants import label_variants


def run(kind: str, seed: int, val_loss: float, parent: int | None = 0, **more: Any) -> dict[str, Any]:
    name = f"dense-L32-s{seed}-{parent or 0:08x}"
    start = {
        "environment.start.run": name, "environment.start.weights": f"w{seed}{parent}",
        "environment.start.val_loss": 3.0 + seed, "fingerprint.start": name, "start.parent.train.steps": 6,
    }  # fmt: skip
    return {
        "run_id": f"{kind}-L32-s{seed}-{len(more)}{parent}", "status": "done", "attention": kind, "length": 32,
        "seed": seed, "steps": 10, "tokens": 1000, "val_loss": val_loss, "task_accuracy": None,
        **(start if parent is not None else dict.fromkeys(start)), **more,
    }  # fmt: skip


def notes_of(*runs: dict[str, Any], losses: dict[str, list[float]] | None = None) -> tuple[pd.DataFrame, list[str]]:
    frame = pd.DataFrame(list(runs)).assign(error=None)
    pairs = find_pairs(label_variants(frame), "dense").frame
    records = [
        {"run_id": name, "step": step, "val_loss": loss}
        for name, curve in (losses or {}).items()
        for step, loss in zip((0, 5, 10), curve, strict=True)
    ]
    return pairs, child_notes(
        pairs, pd.DataFrame(records, columns=["run_id", "step", "val_loss"]).astype({"val_loss": float})
    )


def test_children_of_one_parent_are_pairs_and_its_loss_is_named() -> None:
    runs = [run(kind, seed, 2.0 + seed + more) for kind, more in (("dense", 0.0), ("dsa", 0.25)) for seed in (1, 2)]
    pairs, notes = notes_of(*runs)
    assert len(pairs) == 2 and set(pairs["setting"]) == {""}
    assert notes == [
        "32 tokens: pairs are children of one parent each: 2 parents (dense-L32-s1-00000000 and others), whose own "
        "val_loss is 4.5000 (mean of seeds); since then the baseline -1.0000, DSA -0.7500"
    ]


def test_children_of_two_parents_are_no_pair() -> None:
    pairs, notes = notes_of(run("dense", 1, 3.0, parent=1), run("dsa", 1, 3.0, parent=2))
    assert pairs.empty and notes == []


def test_a_run_from_scratch_is_no_pair_of_a_child() -> None:
    pairs, _ = notes_of(run("dense", 1, 3.0, parent=None), run("dsa", 1, 3.0), run("dsa", 1, 3.0, None, steps=9))
    assert list(pairs["a.environment.start.run"].isna()) == [True]


def test_frozen_steps_do_not_count_and_equal_tokens_are_compared() -> None:
    dense, dsa = run("dense", 1, 2.0), run("dsa", 1, 2.5, backbone_tokens=500)
    losses = {dense["run_id"]: [4.0, 3.0, 2.0], dsa["run_id"]: [4.0, 3.5, 2.5]}
    pairs, notes = notes_of(dense, dsa, losses=losses)
    assert list(backbone_tokens(pairs, "a.")) == [500] and list(backbone_tokens(pairs, "b.")) == [1000]
    assert notes[1] == (
        "32 tokens: tokens that trained the backbone: DSA 500, the baseline 1,000; difference of val_loss +0.5000 at "
        "equal steps, -0.5000 at the fewer tokens of the two"
    )


@pytest.mark.parametrize("parent", [None])
def test_runs_from_scratch_have_no_such_notes(parent: int | None) -> None:
    assert notes_of(run("dense", 1, 3.0, parent), run("dsa", 1, 3.0, parent))[1] == []


def test_a_comparison_tells_parents_and_what_the_selection_alone_costs(tmp_path: Path) -> None:
    """Of a store: what `compare` keeps of the runs must be enough for its notes."""
    synthetic.family(tmp_path)
    found = compare(look_at(tmp_path))
    notes = " ".join(found.notes)
    assert "pairs are children of one parent each: 3 parents" in notes and "since then the baseline -0.1000" in notes
    assert "before the first sparse step: DSA +0.2500" in notes and "mass recall 0.45, chance 0.30" in notes
    assert not [text for text in found.warnings if "parent" in text]
    assert {row.verdict for row in found.rows} == {"not worse"}


@pytest.mark.parametrize("gain", [-0.1, 0.01, 0.14])
def test_children_that_memorise_are_overfitted_and_a_baseline_that_is_worse_than_its_parent_is_said_first(
    gain: float, tmp_path: Path
) -> None:
    """The training loss falls; where the validation loss rises by more than the margin there is no verdict."""
    synthetic.family(tmp_path, gain=lambda spec: gain if spec.attention.kind == "dense" else gain - 0.05, scratch=False)
    found = compare(look_at(tmp_path))
    assert {row.withheld for row in found.rows} == ({"overfitted"} if gain > 0.02 else {None})
    said = [text for text in found.warnings if "above its parent's own loss" in text]
    assert len(said) == (gain > 0)
    if said:
        assert (
            f"the baseline, trained on, ended {gain:.4f} nats above its parent's own loss (3 of 3 seeds did)" in said[0]
        )


@settings(max_examples=30, deadline=None)
@given(gains=st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=5))
def test_a_baseline_is_worse_than_its_parents_when_its_mean_is(gains: list[float]) -> None:
    runs = [run("dense", seed, 3.0 + seed + gain) for seed, gain in enumerate(gains, 1)]
    pairs, _ = notes_of(
        *runs, *(run(kind, seed, 2.0) for seed in range(1, len(gains) + 1) for kind in ("dsa", "random"))
    )
    found = list(worse_than_parents(pairs))
    mean = sum(pairs.drop_duplicates("b.run_id")["b.val_loss"] - pairs.drop_duplicates("b.run_id")["seed"] - 3.0)
    assert bool(found) == (mean > 0)
