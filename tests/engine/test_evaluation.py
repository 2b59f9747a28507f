"""Evaluation against plain sums, and mass recall against its definition and its chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_answers import target_recall, target_recall_chance
from task_tools import settings_of

from dsabench.attention.base import Selection
from dsabench.data import Batch
from dsabench.data.tasks import TaskWindows
from dsabench.engine import evaluation
from dsabench.engine.device import Execution
from dsabench.engine.evaluation import Evaluator, bits_per_byte
from dsabench.engine.selection_recall import recall_BT, selection_recall
from dsabench.model.transformer import ForwardPass, build
from dsabench.spec.run import validate

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
SPEC = validate(
    {
        "length": 24,
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 8},
        "attention": {"kind": "dsa", "top_k": 6, "indexer": {"n_heads": 2, "head_dim": 4}},
    }
)


def windows(n: int, length: int = 24, vocab: int = 40) -> Batch:
    return Batch(np.random.default_rng(0).integers(0, vocab, (n, length + 1)).astype(np.int32))


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_loss_accuracy_and_positions_by_plain_sums(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 24 * 3)  # batches of 3 of 7 windows: the last one is short
    model, tokens = build(SPEC, 40), windows(7)
    result = Evaluator(model, CPU).evaluate(tokens, stage)
    with torch.no_grad():
        x = torch.from_numpy(tokens.tokens.astype(np.int64))
        output = model(x[:, :-1], ForwardPass(stage=stage))
        log_p = output.logits_BTV.double().log_softmax(-1)
    nll = -log_p.gather(-1, x[:, 1:, None])[..., 0]
    assert result["loss"] == pytest.approx(float(nll.mean()), abs=1e-5)
    assert result["loss_by_position"] == pytest.approx(nll.mean(0).tolist(), abs=1e-5)
    assert result["nats"] == pytest.approx(nll.numpy(), abs=1e-5)
    assert result["kl"] == pytest.approx(float(output.attention_loss), rel=1e-4)
    assert result["accuracy"] == pytest.approx(float((log_p.argmax(-1) == x[:, 1:]).double().mean()))
    assert result["kl"] is not None
    assert result["kl"] >= 0
    assert model.training


def test_long_windows_have_their_positions_binned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "POSITION_BINS", 5)
    result = Evaluator(build(SPEC, 40), CPU).evaluate(windows(3))
    assert len(result["loss_by_position"]) == 5
    sizes = [5, 5, 5, 5, 4]
    mean = sum(loss * size for loss, size in zip(result["loss_by_position"], sizes, strict=True)) / 24
    assert mean == pytest.approx(result["loss"])


def test_only_scored_targets_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 24 * 3)
    rng = np.random.default_rng(3)
    scored = np.zeros((7, 24), np.bool_)
    for row in scored:  # the same number in each window, never in the first eight
        row[8 + rng.choice(16, 5, replace=False)] = True
    model, batch = build(SPEC, 40), Batch(windows(7).tokens, scored)
    result = Evaluator(model, CPU).evaluate(batch)
    with torch.no_grad():
        x = torch.from_numpy(batch.tokens.astype(np.int64))
        log_p = model(x[:, :-1]).logits_BTV.double().log_softmax(-1)
    nll = -log_p.gather(-1, x[:, 1:, None])[..., 0].numpy()
    right = (log_p.argmax(-1) == x[:, 1:]).numpy()
    assert result["loss"] == pytest.approx(nll[scored].mean(), abs=1e-5)
    assert result["accuracy"] == pytest.approx(right[scored].mean())
    for t, value in enumerate(result["loss_by_position"]):
        there = scored[:, t]
        assert value == (pytest.approx(nll[there, t].mean(), abs=1e-5) if there.any() else None)
    assert result["loss_by_position"][:8] == [None] * 8


@pytest.mark.parametrize("name", ["recall", "arithmetic", "needle"])
def test_target_recall_is_that_of_the_definition(name: str) -> None:
    values = {"recall": {"n_pairs": 4, "n_fillers": 3}, "arithmetic": {"n_digits": 2}, "needle": {"n_needles": 2}}[name]
    batch = TaskWindows(settings_of(name, values), 24).evaluation("val", 24 * 6)
    model = build(SPEC, 300)
    found = selection_recall(model, batch, CPU)
    captured: dict[int, Selection] = {}
    with torch.no_grad():
        model.eval()(torch.from_numpy(batch.inputs.astype(np.int64)), ForwardPass(capture=captured))
    assert found is not None
    by_layer = [target_recall(one.selected_BTK.numpy(), batch) for _, one in sorted(captured.items())]
    assert len(by_layer) == 2
    assert found["target_recall_by_layer"] == pytest.approx(by_layer)
    assert found["target_recall"] == pytest.approx(np.mean(by_layer))
    assert found["target_recall_best"] == pytest.approx(max(by_layer))
    assert found["target_recall_chance"] == pytest.approx(target_recall_chance(batch, 6))
    assert len(set(by_layer)) == 2, "two layers that select alike would not tell their order"


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(2) * 8, 4.0) == pytest.approx(2.0)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(2, 12), k=st.integers(1, 12), seed=st.integers(0, 999))
def test_recall_is_the_mass_inside_the_selection(length: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    causal = torch.ones(length, length).tril().bool()
    mass = torch.rand(1, length, length, generator=generator).masked_fill(~causal, -math.inf).softmax(-1)
    selected = torch.full((1, length, k), -1)
    for t in range(length):
        keys = torch.randperm(t + 1, generator=generator)[:k]
        selected[0, t, : len(keys)] = keys
    recall = recall_BT(Selection(selected, mass))
    for t in range(length):
        chosen = {int(s) for s in selected[0, t] if s >= 0}
        assert float(recall[0, t]) == pytest.approx(sum(float(mass[0, t, s]) for s in chosen), abs=1e-6)
        if t < k:  # everything fits: nothing can be missed
            assert float(recall[0, t]) == pytest.approx(1.0, abs=1e-5)


def test_chance_is_what_random_sets_reach() -> None:
    """On rows t >= k, a random causal set of size k holds k / (t + 1) of any mass, on average."""
    found = selection_recall(build(SPEC, 40), windows(4), CPU)
    assert found is not None
    length, k = 24, 6
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(1, length, length, generator=generator).tril()
    mass = mass / mass.sum(-1, keepdim=True)
    trials = []
    for _ in range(300):
        selected = torch.stack([torch.randperm(max(k, t + 1), generator=generator)[:k] for t in range(length)])[None]
        trials.append(float(recall_BT(Selection(selected, mass))[:, k:].mean()))
    assert found["mass_recall_chance"] == pytest.approx(float(np.mean(trials)), abs=0.01)


def test_nothing_is_reported_where_there_is_no_choice_to_make() -> None:
    full = validate({**SPEC.model_dump(exclude={"attention"}), "attention": {"kind": "dsa", "top_k": 24}})
    assert selection_recall(build(full, 40), windows(1), CPU) is None
    dense = validate({**SPEC.model_dump(exclude={"attention"}), "attention": {"kind": "dense"}})
    assert selection_recall(build(dense, 40), windows(1), CPU) is None
