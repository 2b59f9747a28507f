"""Targets of a window: their recall is that of the task, and what is listed agrees with the selection."""

from __future__ import annotations

import numpy as np
import pytest
from selections import asking, inspection, of_scores, random_layer
from task_answers import target_recall, target_recall_chance
from task_tools import settings_of

from dsabench.data.tasks import TaskWindows
from dsabench.selection.capture import LayerSelection
from dsabench.selection.numbers import selection_numbers
from dsabench.selection.stored_run import selection_frame
from dsabench.selection.targets import Questions, question_list, rank_of, target_numbers, with_targets
from dsabench.spec.tasks import TASKS

SMALL = {
    "recall": {"n_pairs": 6},
    "induction": {"n_copied": 12},
    "needle": {"n_needles": 3},
    "selective_copy": {"n_copied": 9},
    "arithmetic": {"n_digits": 3},
    "forgetting": {"n_pairs": 6, "n_updates": 3},
    "compositional": {"n_side": 2},
    "multi_needle": {"n_needles": 3},
    "variable_tracking": {"n_chains": 3},
    "common_words": {"n_rare": 9},
    "mqar": {"n_pairs": 6},
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("k", [1, 9, 64])
def test_recall_of_a_window_and_its_chance_are_those_of_the_task(name: str, k: int) -> None:
    batch = TaskWindows(settings_of(name, SMALL[name]), 64).evaluation("val", 64)
    layer = random_layer(64, k, seed=k)
    queries = np.flatnonzero(batch.scored[0]).tolist()
    found = target_numbers(layer, Questions(batch.targets[0], dict.fromkeys(queries, "a"), dict.fromkeys(queries, "a")))
    assert found["target_recall"] == pytest.approx(target_recall(layer.selected_TK[None], batch))
    assert found["target_recall_chance"] == pytest.approx(target_recall_chance(batch, k))


def test_the_best_layer_is_the_one_that_selects_most_and_of_equals_the_last() -> None:
    questions = asking(30, {20: [3, 5], 25: [4]})
    scores_TS = np.zeros((30, 30), np.float32)
    scores_TS[:, [3, 4, 5]] = 1.0
    poor, good = of_scores(-scores_TS, 8, random_layer(30, 8).mass_TS, 0), of_scores(scores_TS, 8, scores_TS, 1)
    again = LayerSelection(2, good.selected_TK, good.mass_TS, None)
    layers = [poor, good, again]
    plain = selection_numbers(layers)
    numbers = with_targets(plain, layers, questions)
    assert [layer["target_recall"] for layer in numbers["layers"]] == [0.0, 1.0, 1.0]
    assert (numbers["target_recall_best"], numbers["target_recall_best_layer"]) == (1.0, 2)
    assert numbers["mean"]["target_recall"] == pytest.approx(2 / 3)
    assert all(layer["target_recall_chance"] == pytest.approx((2 * 8 / 21 + 8 / 26) / 3) for layer in numbers["layers"])
    assert plain == selection_numbers(layers)
    seen = inspection(layers, questions=questions)
    assert (seen.default_layer.layer, seen.default_query) == (2, 25)
    assert inspection(layers).default_query == 29


def test_every_query_lists_its_targets_and_what_each_layer_makes_of_them() -> None:
    layers = [
        random_layer(40, 10),
        LayerSelection(1, random_layer(40, 10, 3).selected_TK, random_layer(40, 9).mass_TS, None),
    ]
    questions = asking(40, {30: [2, 7], 36: [11], 39: [0, 1, 2]}, wrong=(36,))
    listed = question_list([f"w{i}" for i in range(40)], layers, questions)
    assert [(one["query"], one["token"], one["answer"]) for one in listed] == [
        (30, "w30", "a30"), (36, "w36", "a36"), (39, "w39", "a39"),
    ]  # fmt: skip
    assert [one["right"] for one in listed] == [True, False, True]
    for one in listed:
        assert [target["key"] for target in one["targets"]] == questions.targets(one["query"])
        for target in one["targets"]:
            for layer, found in zip(layers, target["layers"], strict=True):
                kept = layer.selected_TK[one["query"]].tolist()
                assert found["selected"] == (target["key"] in kept)
                scored = found["selected"] and layer.scores_TS is not None
                assert found["rank"] == (kept.index(target["key"]) if scored else None)
    assert rank_of(layers[0], 30, 31) is None
    frame = selection_frame(layers, questions)
    flags = frame[frame["target"]].groupby("layer").size()
    for layer in layers:
        selected = sum(layer.member_TS[query, key] for query in questions.queries for key in questions.targets(query))
        assert flags.get(layer.layer, 0) == selected
    assert "target" not in selection_frame(layers)
