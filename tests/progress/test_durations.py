"""Durations in words: the unit that gives a readable number, and one function for all who say one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsabench.progress.durations import DAY, HOUR, MINUTE, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (45, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (12 * MINUTE, "12 min"),
        (1.4 * HOUR, "84 min"),
        (1.5 * HOUR, "1.5 hours"),
        (30 * HOUR, "30.0 hours"),
        (85.1 * HOUR, "3.5 days"),
        (400 * DAY, "400 days"),
        (4000 * DAY, "4,000 days"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@given(st.floats(1.0, 1e10))
def test_what_is_said_is_near_what_is_meant(seconds: float) -> None:
    number, unit = duration(seconds).split(" ")
    said = float(number.replace(",", "")) * {"s": 1.0, "min": MINUTE, "hours": HOUR, "days": DAY}[unit]
    assert said == pytest.approx(seconds, rel=0.51 if seconds < 2 else 0.35)
    assert len(number) <= 4 or unit == "days"
