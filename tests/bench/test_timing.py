"""The stopwatch on a CPU, where what it measures can be made up."""

from __future__ import annotations

import time

import pytest
import torch

from dsabench.bench import timing
from dsabench.bench.timing import LEAST, Stopwatch, Times


def test_forward_and_backward_are_told_apart() -> None:
    seen: list[object] = []

    def forward() -> str:
        time.sleep(0.01)
        return "outputs"

    def backward(outputs: object) -> None:
        seen.append(outputs)
        time.sleep(0.03)

    times = Stopwatch(torch.device("cpu")).time(forward, backward, 3)
    assert seen == ["outputs"] * 3
    for total, first in zip(*times, strict=True):
        assert 10 <= first < total
        assert total - first >= 30


def test_no_more_repetitions_than_asked_for_and_few_of_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert len(watch.time(lambda: None, None, 2).total) == 2
    assert len(watch.time(lambda: None, None, 40).total) == 40
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    assert len(watch.time(lambda: time.sleep(1e-4), None, 40).total) == LEAST
    assert len(watch.time(lambda: time.sleep(1e-4), None, 2).total) == 2


def test_quantiles_are_of_the_whole_and_not_of_the_forward_pass() -> None:
    times = Times([5.0, 1.0, 2.0, 4.0, 3.0, 6.0], [0.0] * 6)
    assert [times.quantile(share) for share in (0.2, 0.5, 0.8)] == [2.0, 3.5, 5.0]
