"""The recipe of a conversion: the length of the warm-up, and learning rates of indexer and backbone in both stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsabench.engine.optimizer import Optimizer, stage_at
from dsabench.errors import SpecError
from dsabench.model.transformer import build
from dsabench.spec.config import load_sweep
from dsabench.spec.run import RunSpec, validate

MODEL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "n_experts": 1, "experts_per_token": 1}


def spec_of(**indexer: Any) -> RunSpec:
    attention = {"kind": "dsa", "top_k": 8, "indexer": {"n_heads": 1, "head_dim": 8, **indexer}}
    return validate({"length": 16, "attention": attention, "model": MODEL, "train": {"steps": 50}})


@given(st.integers(0, 200), st.integers(1, 100))
def test_a_warm_up_in_steps_is_that_long_and_leaves_a_sparse_step(warmup: int, steps: int) -> None:
    spec = validate({"attention": {"kind": "dsa", "indexer": {"warmup_steps": warmup}}, "train": {"steps": steps}})
    dense = [stage_at(spec, step) for step in range(steps)].count("dense")
    assert dense == min(warmup, steps - 1)


def test_an_override_of_one_length_clears_the_other() -> None:
    sweep = load_sweep("quick")  # which has warmup_share: 0.2
    sweep.set("attention.indexer.warmup_steps", 7, "--set attention.indexer.warmup_steps: ")
    sweep.set("attention.kind", "dsa", "--attention: ")
    assert sweep.first().attention.warmup_steps(100) == 7
    sweep.set("attention.indexer.warmup_share", 0.5, "x: ")
    assert sweep.first().attention.warmup_steps(100) == 50


def rates(spec: RunSpec, stage: Any) -> tuple[set[float], set[float]]:
    """Learning rates of backbone and indexer in a stage, at the peak of the schedule."""
    optimizer = Optimizer(build(spec, 40), spec, torch.device("cpu"))
    optimizer.set_rate(torch.ones(1), stage)
    own = {id(p) for p in optimizer.own}
    found: tuple[set[float], set[float]] = (set(), set())
    for group in optimizer.groups:
        found[id(group.parameters[0]) in own].add(round(float(group.rate), 9))
    return found


@pytest.mark.parametrize(
    ("indexer", "dense", "sparse"),
    [
        ({}, (1e-3, 1e-3), (1e-3, 1e-3)),
        ({"learning_rate": 5e-3}, (1e-3, 5e-3), (1e-3, 5e-3)),
        ({"warmup_learning_rate": 1e-2, "learning_rate": 1e-5}, (1e-3, 1e-2), (1e-3, 1e-5)),
        ({"warmup_backbone_learning_rate": 2e-4}, (2e-4, 1e-3), (1e-3, 1e-3)),
    ],
)
def test_rates_are_apart_in_both_stages(
    indexer: dict[str, Any], dense: tuple[float, float], sparse: tuple[float, float]
) -> None:
    spec = spec_of(**indexer)
    for stage, wanted in (("dense", dense), ("sparse", sparse)):
        assert rates(spec, stage) == ({round(wanted[0], 9)}, {round(wanted[1], 9)}), stage


def test_a_frozen_backbone_has_no_rate_in_the_warm_up() -> None:
    with pytest.raises(SpecError, match="freeze_backbone = true trains nothing at warmup_backbone_learning_rate"):
        spec_of(freeze_backbone=True, warmup_backbone_learning_rate=1e-4)
