"""A window through a model, captured: what the model did, in order of rank, and the model left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsabench.attention.base import Selection
from dsabench.attention.dsa.reference import allowed_keys, select_top_k
from dsabench.data import Batch
from dsabench.engine.chance import selection_chance_T
from dsabench.engine.device import Execution
from dsabench.engine.selection_recall import recall_BT, selection_recall
from dsabench.model.transformer import ForwardPass, build
from dsabench.selection.capture import LayerSelection, inspect, ranked
from dsabench.selection.numbers import selection_numbers
from dsabench.spec.run import validate
from dsabench.testing import STAGES

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)


def spec(kind: str = "dsa", length: int = 24) -> dict[str, object]:
    attention = {"kind": "dsa", "top_k": 6, "indexer": {"n_heads": 2, "head_dim": 4}} if kind == "dsa" else {}
    return {
        "length": length,
        "model": {"d_model": 16, "n_layers": 3, "n_heads": 2, "d_ff": 8},
        "attention": {"kind": kind, **attention},
    }


def tokens(length: int = 24) -> NDArray[np.uint16]:
    return np.random.default_rng(1).integers(0, 40, length).astype(np.uint16)


def test_it_says_what_evaluation_measures_on_the_same_window() -> None:
    model = build(validate(spec()), 40)
    window = tokens(25)
    layers = inspect(model, window[:-1], CPU)
    measured = selection_recall(model, Batch(window[None].astype(np.int32)), CPU)
    found = selection_numbers(layers)["mean"]
    assert measured is not None
    assert [layer.layer for layer in layers] == [0, 1, 2]
    assert found["mass_recall"] == pytest.approx(measured["mass_recall"], abs=1e-6)
    assert found["mass_recall_chance"] == pytest.approx(measured["mass_recall_chance"])


def test_the_sparse_stage_is_shown_and_the_model_left_as_it_was() -> None:
    model = build(validate(spec()), 40).train()
    seen = inspect(model, tokens(), CPU)
    assert model.training
    masses = []
    for stage in STAGES:
        captured: dict[int, Selection] = {}
        with torch.no_grad():
            model(torch.from_numpy(tokens().astype(np.int64))[None], ForwardPass(stage=stage, capture=captured))
        masses.append(captured[1].mass_BTS)
    # The second layer's input depends on what the first one attended to.
    dense, sparse = (None if mass is None else mass[0].numpy() for mass in masses)
    assert np.array_equal(seen[1].mass_TS, sparse)
    assert not np.array_equal(seen[1].mass_TS, dense)


def test_dense_attention_captures_nothing() -> None:
    assert inspect(build(validate(spec("dense")), 40), tokens(), CPU) == []


def test_selections_are_those_of_the_specification_highest_score_first() -> None:
    for layer in inspect(build(validate(spec()), 40), tokens(), CPU):
        assert layer.scores_TS is not None
        scores_BTS = torch.from_numpy(layer.scores_TS)[None]
        expected = select_top_k(scores_BTS, allowed_keys(24, None, torch.device("cpu")), 6)[0].numpy()
        assert np.array_equal(layer.selected_TK, expected)
        assert layer.k == 6
        assert np.array_equal(layer.n_selected_T, np.minimum(6, np.arange(24) + 1))
        assert np.allclose(layer.mass_TS.sum(axis=1), 1, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 10_000), st.booleans())
def test_whatever_a_variant_captures_becomes_ranked_sets_of_the_past(
    length: int, slots: int, seed: int, scored: bool
) -> None:
    generator = np.random.default_rng(seed)
    raw_TK = generator.integers(-1, length, (length, slots))  # repeated keys, later keys, holes anywhere
    scores_TS = generator.integers(-2, 3, (length, length)).astype(np.float32) if scored else None
    got_TK = ranked(raw_TK, scores_TS)
    for t in range(length):
        wanted = list(dict.fromkeys(int(s) for s in raw_TK[t] if 0 <= s <= t))
        if scores_TS is not None:
            wanted.sort(key=lambda s: -scores_TS[t, s])
        assert got_TK[t].tolist() == wanted + [-1] * (slots - len(wanted))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_members_slots_and_counts_agree_with_evaluations_recall(length: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    selected_TK = ranked(generator.integers(-1, length, (length, k)), None)
    mass_TS = generator.random((length, length)).astype(np.float32)
    layer = LayerSelection(0, selected_TK, mass_TS, None)
    for t in range(length):
        assert np.flatnonzero(layer.member_TS[t]).tolist() == sorted(s for s in selected_TK[t] if s >= 0)
        assert layer.n_selected_T[t] == layer.member_TS[t].sum()
    captured = Selection(torch.from_numpy(selected_TK.astype(np.int64))[None], torch.from_numpy(mass_TS)[None])
    assert np.allclose(layer.at_slots(mass_TS).sum(axis=1), recall_BT(captured)[0].numpy(), atol=1e-5)


def test_chance_is_a_share_of_the_past() -> None:
    assert selection_chance_T(np.array([1, 2, 2, 2])).tolist() == [1, 1, 2 / 3, 0.5]
