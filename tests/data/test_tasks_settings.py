"""Task settings: what is refused, and what the message says would do instead; digests; the draws behind the windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from task_tools import settings_of

from dsabench.data.tasks import TaskWindows, fingerprint
from dsabench.data.tasks.draws import EVALUATION_KEY, Draws
from dsabench.errors import DataError
from dsabench.spec.tasks import TASKS

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("name", "values", "length", "message"),
    [
        ("recall", {}, 32, r"n_pairs = 16 and n_queries = 16 takes 64 tokens.*length 32 has 33; n_pairs = 8 and"),
        ("recall", {}, 62, r"n_pairs = 15 and n_queries = 15 would fit, or a length of at least 63$"),
        ("induction", {}, 62, r"n_copied = 31 would fit, or a length of at least 63$"),
        ("needle", {}, 20, r"n_needles = 3, n_queries = 3 and value_length = 2 would fit, or .* at least 27$"),
        ("selective_copy", {}, 31, r"n_copied = 15 would fit, or a length of at least 32$"),
        ("arithmetic", {}, 8, r"has 9; n_digits = 1 would fit, or a length of at least 15$"),
        ("recall", {"curriculum": {"start_span": 300}}, 256, r"start_span = 300 .* at most 256 fits"),
    ],
)
def test_what_does_not_fit_says_what_would(name: str, values: dict[str, Any], length: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TaskWindows(settings_of(name, values), length)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("recall", {"n_queries": 17}, "n_queries = 17 is more than n_pairs = 16"),
        ("recall", {"n_pairs": 200}, "n_pairs = 200 is more than n_keys = 128"),
        ("induction", {"n_symbols": 32}, "at least 33 would"),
        ("recall", {"curriculum": {"start": 17}}, "curriculum.start = 17 is not a size from 1 to n_pairs = 16"),
        ("induction", {"curriculum": {"start": 1}}, "not a size from 2"),
        ("recall", {"curriculum": {"start": 4, "start_span": 8}}, "does not hold n_pairs = 4 .*at least 15 does"),
        ("recall", {"pairs": 3}, "Extra inputs are not permitted"),
        ("recall", {"n_pairs": "3"}, "valid integer"),
    ],
)
def test_impossible_settings_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=message):
        settings_of(name, values)


def test_every_field_is_documented() -> None:
    for task in TASKS.values():
        for name, field in task.model_fields.items():
            assert field.description, f"{task.__name__}.{name}"


def test_fingerprint_follows_the_windows() -> None:
    def of(name: str, **values: Any) -> dict[str, str]:
        return fingerprint(settings_of(name, values))

    assert of("recall") == of("recall", curriculum=None) == TaskWindows(settings_of("recall"), 99).fingerprint
    assert of("recall")["corpus"] != of("recall", n_pairs=8)["corpus"]
    assert of("recall")["tokenizer"] == of("recall", n_pairs=8)["tokenizer"]
    assert of("recall")["tokenizer"] != of("recall", n_keys=99)["tokenizer"]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 30), SEEDS)
def test_places_do_not_overlap(rows: int, n: int, width: int, free: int, seed: int) -> None:
    room = n * width + free
    places = Draws(seed, 0).places(rows, n, width, room)
    assert places.shape == (rows, n) and places.min() >= 0 and places.max() + width <= room
    assert (np.diff(places, axis=1) >= width).all()


@given(st.integers(1, 5), st.integers(1, 40), SEEDS, st.data())
def test_distinct_draws_are_distinct(rows: int, bound: int, seed: int, data: st.DataObject) -> None:
    drawn = Draws(seed, 0).distinct(rows, data.draw(st.integers(1, bound)), bound)
    assert drawn.min() >= 0 and drawn.max() < bound
    assert all(len(set(row)) == len(row) for row in drawn.tolist())


def test_no_training_seed_is_the_evaluation_key() -> None:
    assert EVALUATION_KEY >= 2**32


def test_distinct_draws_are_in_random_order() -> None:
    """Each number at each place equally often: 6000 draws of 2 of 4, 1500 expected, SD 34."""
    drawn = Draws(0, 0).distinct(6000, 2, 4)
    counts = np.array([[(drawn[:, place] == number).sum() for number in range(4)] for place in range(2)])
    assert (abs(counts - 1500) < 140).all()
    assert abs((drawn[:, 0] < drawn[:, 1]).mean() - 0.5) < 0.03
