"""The answers of tasks whose keys are in parts, replaced, scattered or counted are those that a reader finds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from task_meaning import answers_by_key, solved
from task_tools import settings_of

from dsabench.data.tasks import TaskWindows

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("forgetting", {}, 128),
    ("forgetting", {"n_pairs": 5, "n_updates": 5, "n_queries": 3, "n_values": 2, "n_fillers": 7}, 40),
    ("compositional", {}, 64),
    ("compositional", {"n_side": 5, "n_parts": 6, "n_values": 2, "n_fillers": 3}, 200),
    ("multi_needle", {}, 64),
    ("multi_needle", {"n_needles": 9, "values_per_key": 5, "n_queries": 4, "n_words": 3}, 256),
    ("variable_tracking", {}, 64),
    ("variable_tracking", {"n_chains": 6, "n_hops": 5, "n_queries": 2, "n_values": 2, "n_fillers": 5}, 200),
    ("common_words", {}, 64),
    ("mqar", {}, 64),
    ("mqar", {"n_pairs": 9, "n_keys": 9, "n_values": 9, "n_fillers": 5, "power": 1.0}, 41),
    ("common_words", {"n_rare": 100, "n_common": 5, "common_count": 2, "n_fillers": 9}, 4096),
]


@pytest.mark.parametrize(("name", "values", "length"), CASES)
def test_a_reader_finds_every_answer(name: str, values: dict[str, Any], length: int) -> None:
    """From inputs alone: no answer is read, and none needs what the window does not hold."""
    windows = TaskWindows(settings_of(name, values), length)
    for batch in (windows.evaluation("val", 40 * length), windows.batch(3, 99, 40, 100), windows.batch(3, 0, 40, 100)):
        for inputs_T, tokens_T, scored_T in zip(batch.inputs, batch.tokens, batch.scored, strict=True):
            scored = np.flatnonzero(scored_T).tolist()
            assert solved(windows.settings, inputs_T.tolist(), scored) == tokens_T[np.add(scored, 1)].tolist()


def test_an_update_changes_the_answer_and_stands_after_the_first_pair() -> None:
    windows = TaskWindows(settings_of("forgetting", {"n_values": 2, "n_updates": 16}), 128)
    batch = windows.evaluation("val", 20 * 128)
    task, first_value = windows.settings, windows.settings.first_id("v")
    for inputs_T, scored_T in zip(batch.inputs, batch.scored, strict=True):
        context = inputs_T[: scored_T.argmax()].tolist()
        values: dict[int, list[int]] = {}
        for token, following in itertools.pairwise(context):
            if task.first_id("k") <= token < first_value <= following:
                values.setdefault(token, []).append(following)
        assert all(len(both) == 2 and both[0] != both[1] for both in values.values()) and len(values) == 16


def test_neither_part_of_a_key_says_its_value() -> None:
    windows = TaskWindows(settings_of("compositional", {"n_side": 4}), 128)
    batch = windows.evaluation("val", 128)
    keys = list(answers_by_key(windows.settings, batch.inputs[0, : batch.scored[0].argmax() - 1].tolist()))
    for side in (0, 1):
        parts = [key[side] for key in keys]
        assert len(keys) == 16 and {parts.count(part) for part in parts} == {4}


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_gaps_of_mqar_follow_the_power_law(power: float) -> None:
    """The first gap drawn of each window is one of G with probabilities (g + 1)^(power - 1); here there is only one."""
    windows = TaskWindows(settings_of("mqar", {"n_pairs": 1, "power": power, "n_keys": 9, "n_values": 9}), 34)
    batch = windows.evaluation("val", 20_000 * 34)
    gaps = (batch.scored.argmax(1) - 2) // 2
    weights = np.arange(1.0, 17.0) ** (power - 1)
    expected = 20_000 * weights / weights.sum()
    found = np.bincount(gaps, minlength=16)
    assert len(found) == 16 and (np.square(found - expected) / expected).sum() < 44, "chi squared of 15: 1 in 10,000"


def test_pairs_of_mqar_are_packed_and_queries_even() -> None:
    task = settings_of("mqar", {"n_pairs": 16})
    batch = TaskWindows(task, 64).evaluation("val", 200 * 64)
    assert (batch.scored.sum(1) == 16).all() and not batch.scored[:, 1::2].any() and not batch.scored[:, :32].any()
    pairs = batch.tokens[:, :32].reshape(-1, 16, 2)
    for place, first in ((0, "k"), (1, "v")):
        assert (pairs[..., place] >= task.first_id(first)).all()
        assert all(len(set(row)) == 16 for row in pairs[..., place].tolist()), "all differ"
    full = batch.scored[:, 32::2]
    assert full.all(), "16 pairs leave 16 places in 64 tokens: each has a query"
    asked = batch.tokens[:, 32:64:2]
    first = (asked == pairs[:, :1, 0]).argmax(1)
    assert abs(first.mean() - 7.5) < 5 * 4.7 / 200**0.5, "which pair is asked first is chance"


def test_answers_within_a_window_are_the_published_accuracy_of_windows() -> None:
    """On zoology's test sets (its arxiv24_based_figure2 configuration) sliding windows of 8 to 1024 tokens are right in
    so many answers, on the mean over the sets: as many as lie within the window."""
    published = [0.08, 0.15, 0.31, 0.51, 0.66, 0.80, 0.94, 1.0]
    within = []
    for length, pairs in ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)):
        batch = TaskWindows(settings_of("mqar", {"n_pairs": pairs}), length).evaluation("val", 400 * length)
        back = np.nonzero(batch.scored)[1] - batch.targets[batch.scored][:, 0]
        within.append([(back < 2**n).mean() for n in range(3, 11)])
    assert np.mean(within, 0) == pytest.approx(published, abs=0.02)
