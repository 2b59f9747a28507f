"""From which length on one is faster than another, on curves whose crossing is known."""

from __future__ import annotations

import pytest

from dsabench.bench.crossover import crossover

LENGTHS = (1000, 2000, 4000, 8000)


def test_power_laws_cross_where_algebra_says() -> None:
    """2 L against L^2 / 1500: equal at L = 3000, whatever the lengths measured."""
    mine, theirs = {n: 2.0 * n for n in LENGTHS}, {n: n**2 / 1500 for n in LENGTHS}
    found = crossover(mine, theirs, "a", "b")
    assert found.relation == "interpolated"
    assert found.length == pytest.approx(3000)
    assert found.words == "a is faster than b from about L = 3,000 on."


def test_a_tie_is_not_faster() -> None:
    mine, theirs = {n: 2.0 * n for n in LENGTHS}, {n: n**2 / 1000 for n in LENGTHS}
    assert crossover(mine, theirs, "a", "b").length == pytest.approx(2000)
    until_then = {n: theirs[n] for n in (1000, 2000)}
    assert crossover(mine, until_then, "a", "b").relation == "never"


def test_never_faster_is_none_and_said() -> None:
    found = crossover({n: 3.0 * n for n in LENGTHS}, {n: 2.0 * n for n in LENGTHS}, "a", "b")
    assert (found.length, found.relation) == (None, "never")
    assert found.words == "a is not faster than b up to L = 8,000, where it takes 1.50 times as long."


def test_always_faster_is_at_or_below_the_first() -> None:
    found = crossover(dict.fromkeys(LENGTHS, 1.0), dict.fromkeys(LENGTHS, 2.0), "a", "b")
    assert (found.length, found.relation) == (1000.0, "at or below")


def test_of_several_crossings_the_last_counts() -> None:
    theirs = dict.fromkeys(LENGTHS, 10.0)
    found = crossover({1000: 5.0, 2000: 20.0, 4000: 20.0, 8000: 5.0}, theirs, "a", "b")
    assert found.length == pytest.approx(4000 * 2**0.5)
    assert "faster below that too, at L = 1,000" in found.words
    slower_at_the_end = crossover({1000: 5.0, 2000: 20.0, 4000: 5.0, 8000: 20.0}, theirs, "a", "b")
    assert slower_at_the_end.length is None
    assert "it was faster at L = 1,000, 4,000" in slower_at_the_end.words


def test_only_lengths_that_both_have_count() -> None:
    mine = {1000: 2.0, 4000: 2.0, 8000: 9.0}
    theirs = {1000: 1.0, 2000: 99.0, 4000: 4.0}
    assert crossover(mine, theirs, "a", "b").length == pytest.approx(2000)
    assert crossover({1: 1.0}, {2: 1.0}, "a", "b").relation == "not measured"
