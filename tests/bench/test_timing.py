"""The stopwatch on a CPU, where what it measures can be made up."""

from __future__ import annotations

import pytest
import torch

from dsabench.bench import timing
from dsabench.bench.timing import LEAST, Stopwatch, Times


def test_forward_and_backward_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    now = 5.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

    def forward() -> str:
        nonlocal now
        now += 0.01
        return "outputs"

    def backward(outputs: object) -> None:
        nonlocal now
        seen.append(outputs)
        now += 0.03

    times = Stopwatch(torch.device("cpu")).time(forward, backward, 3)
    assert seen == ["outputs"] * 3
    for total, first in zip(*times, strict=True):
        assert (first, total) == pytest.approx((10, 40))


def test_no_more_repetitions_than_asked_for_and_few_of_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert len(watch.time(lambda: None, None, 2).total) == 2
    assert len(watch.time(lambda: None, None, 40).total) == 40
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    assert len(watch.time(lambda: None, None, 40).total) == LEAST
    assert len(watch.time(lambda: None, None, 2).total) == 2


def test_quantiles_are_of_the_whole_and_not_of_the_forward_pass() -> None:
    times = Times([5.0, 1.0, 2.0, 4.0, 3.0, 6.0], [0.0] * 6)
    assert [times.quantile(share) for share in (0.2, 0.5, 0.8)] == [2.0, 3.5, 5.0]
