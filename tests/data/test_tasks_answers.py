"""What makes `targets` right: all that a model reads but them is worth no more than a blind guess (and they alone
suffice: test_tasks.py). Target recall@k and its chance.

The blind solvers see the window up to the query, with the listed positions covered. Each knows a different way to
exploit what a wrong listing would leave visible; all start from fixed evaluation windows, so nothing here is flaky.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from task_answers import target_recall, target_recall_chance
from task_tools import settings_of

from dsabench.data.tasks import TaskBatch, TaskWindows
from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks import TASKS, Arithmetic, CommonWords, Induction, Mqar, MultiNeedle

COVERED = -1
Solver = Callable[[TaskSettings, np.ndarray, np.random.Generator], int]


def ids(task: TaskSettings, kind: str) -> range:
    first = 0
    for name, count in task.alphabet:
        if name == kind:
            return range(first, first + count)
        first += count
    raise AssertionError(kind)


def answer_ids(task: TaskSettings) -> range:
    kinds = {"needle": "w", "common_words": "w", "arithmetic": "", "induction": "s", "selective_copy": "s"}
    return ids(task, kinds.get(task.name, "v"))


def is_answer(task: TaskSettings, token: int) -> bool:
    return token in answer_ids(task)


def constant(task: TaskSettings, seen_T: np.ndarray, rng: np.random.Generator) -> int:
    return answer_ids(task)[0]


def after_the_same_token(task: TaskSettings, seen_T: np.ndarray, rng: np.random.Generator) -> int:
    """An induction head: what followed the input's other occurrences."""
    places = np.flatnonzero(seen_T[:-1] == seen_T[-1]) + 1
    found = [int(seen_T[place]) for place in places if is_answer(task, int(seen_T[place]))]
    return found[-1] if found else constant(task, seen_T, rng)


def beside_the_cover(offset: int) -> Solver:
    """What stands before or after a covered place: the value, had the key been listed in its stead, or the reverse."""

    def solve(task: TaskSettings, seen_T: np.ndarray, rng: np.random.Generator) -> int:
        places = np.flatnonzero(seen_T[:-1] == COVERED) + offset
        found = [int(seen_T[p]) for p in places if 0 <= p < len(seen_T) and is_answer(task, int(seen_T[p]))]
        return found[-1] if found else constant(task, seen_T, rng)

    return solve


def commonest(task: TaskSettings, seen_T: np.ndarray, rng: np.random.Generator) -> int:
    found = [int(token) for token in seen_T if is_answer(task, int(token))]
    return int(np.bincount(found).argmax()) if found else constant(task, seen_T, rng)


def last_one(task: TaskSettings, seen_T: np.ndarray, rng: np.random.Generator) -> int:
    found = [int(token) for token in seen_T if is_answer(task, int(token))]
    return found[-1] if found else constant(task, seen_T, rng)


def never_seen(task: TaskSettings, seen_T: np.ndarray, rng: np.random.Generator) -> int:
    """By elimination: an answer that stands nowhere else, if there is one."""
    left = sorted(set(answer_ids(task)) - set(seen_T.tolist())) or list(answer_ids(task))
    return int(rng.choice(left))


def most_probable_digit(task: TaskSettings, seen_T: np.ndarray, rng: np.random.Generator) -> int:
    """The best guess of a digit of a sum: all digits that the covered ones can be, weighed by what is seen."""
    assert isinstance(task, Arithmetic)
    zero, n = ids(task, "")[0], task.n_digits
    problem = 3 * n + 4
    digits = np.where(seen_T == COVERED, -1, seen_T - zero)
    start = (len(seen_T) - 1) // problem * problem
    place = len(seen_T) - 1 - start - (2 * n + 1)
    a, b, total = digits[start : start + n], digits[start + n + 1 : start + 2 * n + 1], digits[start + 2 * n + 2 :]
    weight_D = np.zeros(10)
    carry_below = 0
    for below in range(place - 1):  # what lies further down is all visible
        carry_below = int(a[below] + b[below] + carry_below >= 10)
    choices = lambda digit: range(10) if digit < 0 else [digit]  # noqa: E731
    carries: dict[int, int] = {0: 1}
    if place > 0:
        carries = {0: 0, 1: 0}
        for one in choices(a[place - 1]):
            for other in choices(b[place - 1]):
                if (one + other + carry_below) % 10 == total[place - 1]:
                    carries[int(one + other + carry_below >= 10)] += 1
    for carry, ways in carries.items():
        for one in choices(a[place]) if place < n else [0]:
            for other in choices(b[place]) if place < n else [0]:
                weight_D[(one + other + carry) % 10] += ways
    return zero + int(weight_D.argmax())


SOLVERS: dict[str, Solver] = {
    "constant": constant,
    "after the same token": after_the_same_token,
    "before the cover": beside_the_cover(-1),
    "after the cover": beside_the_cover(1),
    "commonest": commonest,
    "last": last_one,
    "never seen": never_seen,
}


def blind_accuracy(task: TaskSettings, batch: TaskBatch, solve: Solver) -> tuple[float, int]:
    rng, right, inputs_BL = np.random.default_rng(0), [], batch.inputs
    for b, t in np.argwhere(batch.scored):
        seen_T = inputs_BL[b, : t + 1].copy()
        listed = batch.targets[b, t]
        seen_T[listed[listed >= 0]] = COVERED
        right.append(solve(task, seen_T, rng) == batch.tokens[b, t + 1])
    return float(np.mean(right)), len(right)


def blind_guess(task: TaskSettings) -> float:
    """Accuracy of the best guess without the token that is asked for. The carry out of a place whose digit c is seen
    is 1 in 9 - c of ten equally likely pairs, and max(c + 1, 9 - c) averages 7.5."""
    if isinstance(task, Arithmetic):
        return (task.n_digits * 0.1 + 0.75) / (task.n_digits + 1)
    if isinstance(task, Induction):
        return 1 / (task.n_symbols - task.n_copied + 1)  # those that are seen are ruled out
    if isinstance(task, MultiNeedle):
        return 1 / (task.n_values - task.n_needles * task.values_per_key + 1)
    if isinstance(task, Mqar):
        return 1 / (task.n_values - task.n_pairs + 1)
    if isinstance(task, CommonWords):
        return 1 / (task.n_words - task.n_rare - task.n_common + 1)
    return 1 / len(answer_ids(task))


CASES: list[tuple[str, dict[str, Any], int]] = [
    ("recall", {"n_values": 8}, 128),
    ("recall", {"n_pairs": 4, "n_queries": 4, "n_keys": 5, "n_values": 3, "n_fillers": 3}, 20),
    ("recall", {"n_pairs": 4, "n_values": 5}, 20),
    ("recall", {"n_pairs": 4, "n_values": 5, "answers": "shown"}, 20),
    ("induction", {"n_copied": 8, "n_symbols": 12}, 40),
    ("induction", {"n_copied": 5, "n_symbols": 6, "n_fillers": 4}, 15),
    ("needle", {"n_words": 8}, 64),
    ("needle", {"n_words": 8, "answers": "shown"}, 64),
    ("needle", {"n_words": 5, "value_length": 1, "n_needles": 3, "n_queries": 2}, 20),
    ("selective_copy", {"n_symbols": 8}, 64),
    ("selective_copy", {"n_copied": 6, "n_symbols": 4, "n_fillers": 3}, 16),
    ("selective_copy", {"n_copied": 4, "n_symbols": 5, "answers": "shown"}, 16),
    ("arithmetic", {}, 64),
    ("arithmetic", {"n_digits": 3}, 40),
    ("forgetting", {"n_values": 8}, 128),
    ("forgetting", {"n_pairs": 3, "n_updates": 3, "n_values": 5, "n_fillers": 4}, 20),
    ("compositional", {"n_values": 8}, 64),
    ("multi_needle", {"n_values": 16}, 64),
    ("multi_needle", {"n_needles": 2, "values_per_key": 3, "n_values": 9, "n_words": 3}, 30),
    ("variable_tracking", {"n_values": 8}, 64),
    ("variable_tracking", {"n_chains": 3, "n_hops": 0, "n_values": 5}, 20),
    ("common_words", {"n_rare": 8, "n_words": 20}, 64),
    ("mqar", {"n_pairs": 6, "n_values": 9}, 64),
    ("mqar", {"n_pairs": 5, "n_values": 5, "n_keys": 5, "n_fillers": 4, "power": 1.0}, 20),
]


@pytest.mark.parametrize(("name", "values", "length"), CASES)
def test_all_but_the_targets_is_worth_a_blind_guess(name: str, values: dict[str, Any], length: int) -> None:
    """No blind solver beats it, and the best one reaches it."""
    windows = TaskWindows(settings_of(name, values), length)
    task, batch = windows.settings, windows.evaluation("train", length * 100)
    solvers = {**SOLVERS, "most probable": most_probable_digit} if name == "arithmetic" else SOLVERS
    accuracy = {}
    for solver, solve in solvers.items():
        accuracy[solver], n = blind_accuracy(task, batch, solve)
    chance = blind_guess(task)
    margin = 4 * math.sqrt(chance * (1 - chance) / n) + 0.005  # arithmetic holds an eighth of the problems out
    assert max(accuracy.values()) < chance + margin, accuracy
    ruled_out = dict.fromkeys(("induction", "multi_needle", "common_words", "mqar"), "never seen")
    best = {**ruled_out, "arithmetic": "most probable"}.get(name, "constant")
    assert accuracy[best] > chance - margin, accuracy


def test_listed_digits_of_one_sum() -> None:
    """12 + 39 = 051 reads 2 1 + 9 3 = 1 5 0 ;: digits at 0 1, 3 4 and 6 7 8, read at 5, 6 and 7."""
    windows = TaskWindows(settings_of("arithmetic", {"n_digits": 2, "curriculum": None}), 9)
    batch = windows.evaluation("val", 9)
    assert np.flatnonzero(batch.scored[0]).tolist() == [5, 6, 7]
    assert batch.targets[0, 5:8].tolist() == [[0, 3, -1, -1], [1, 4, 0, 3], [-1, -1, 1, 4]]


def by_hand() -> TaskBatch:
    scored = np.zeros((1, 6), np.bool_)
    targets = np.full((1, 6, 2), -1, np.int32)
    scored[0, [3, 5]] = True
    targets[0, 3], targets[0, 5, 0] = (0, 2), 4
    return TaskBatch(np.zeros((1, 7), np.int32), scored, targets)


def test_target_recall_counts_listed_positions_of_scored_inputs() -> None:
    selected = np.full((1, 6, 2), -1)
    selected[0, 3], selected[0, 5] = (2, 3), (0, 1)
    selected[0, 4] = (0, 4)  # not scored: does not count
    assert target_recall(selected, by_hand()) == pytest.approx(1 / 3)
    selected[0, 5, 1] = 4
    assert target_recall(selected, by_hand()) == pytest.approx(2 / 3)
    assert target_recall_chance(by_hand(), 2) == pytest.approx((2 / 4 + 2 / 4 + 2 / 6) / 3)
    assert target_recall_chance(by_hand(), 5) == pytest.approx((1 + 1 + 5 / 6) / 3)


@pytest.mark.parametrize("name", TASKS)
def test_target_recall_of_random_selection_is_its_chance(name: str) -> None:
    windows, k = TaskWindows(settings_of(name), 128), 16
    batch = windows.evaluation("val", 128 * 200)
    scores = np.random.default_rng(0).random((200, 128, 128))
    scores[:, np.triu_indices(128, 1)[0], np.triu_indices(128, 1)[1]] = -1
    order = np.argsort(-scores, axis=-1)[..., :k]
    selected = np.where(np.take_along_axis(scores, order, -1) < 0, -1, order)
    assert target_recall(selected, batch) == pytest.approx(target_recall_chance(batch, k), abs=0.03)
