"""Evaluation against plain sums, and mass recall against its definition and its chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.attention.base import Selection
from dsabench.engine import evaluation
from dsabench.engine.device import Execution
from dsabench.engine.evaluation import Evaluator, baselines, bits_per_byte, recall_BT, selection_recall
from dsabench.model.transformer import build
from dsabench.spec.sweep import validate

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
SPEC = validate(
    {
        "length": 24,
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 8},
        "attention": {"kind": "dsa", "top_k": 6, "indexer": {"n_heads": 2, "head_dim": 4}},
    }
)


def windows(n: int, length: int = 24, vocab: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (n, length + 1)).astype(np.uint16)


def test_loss_accuracy_and_positions_by_plain_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 24 * 3)  # batches of 3 of 7 windows: the last one is short
    model, tokens = build(SPEC, 40), windows(7)
    result = Evaluator(model, CPU).evaluate(tokens)
    with torch.no_grad():
        x = torch.from_numpy(tokens.astype(np.int64))
        log_p = model(x[:, :-1]).logits_BTV.double().log_softmax(-1)
    nll = -log_p.gather(-1, x[:, 1:, None])[..., 0]
    assert result["loss"] == pytest.approx(float(nll.mean()), abs=1e-5)
    assert result["loss_by_position"] == pytest.approx(nll.mean(0).tolist(), abs=1e-5)
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


def test_baselines_and_bits_per_byte() -> None:
    tokens = np.array([[0, 1, 2], [2, 2, 1]])
    unigram, size = baselines(tokens, np.array([1.0, 2.0, 4.0]), np.array([0, 3, 5]))
    assert unigram == pytest.approx((2 + 4 + 4 + 2) / 4)
    assert size == pytest.approx((3 + 5 + 5 + 3) / 4)
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
