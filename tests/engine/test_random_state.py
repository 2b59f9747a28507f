"""What a notebook calls leaves the notebook's random numbers alone."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from single_runs import base

import dsabench
from dsabench.engine.sink import Update
from dsabench.spec.run import validate

SMALL_BENCH: dict[str, Any] = {"lengths": [16], "heads": 1, "head_dim": 8, "repeats": 1, "only": ["dense"]}

CALLS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "build_model": lambda values, store: dsabench.build_model(validate(values)),
    "train": lambda values, store: dsabench.train(validate({**values, "seed": 2}), store=store),
    "load_model": lambda values, store: dsabench.load_model(store, run_of(values, store)),
    "inspect_selection": lambda values, store: dsabench.inspect_selection(store, run_of(values, store)),
    "reproduce": lambda values, store: dsabench.reproduce(store, run_of(values, store)),
    "bench_layer": lambda values, store: dsabench.bench_layer(
        lengths=[16], heads=1, head_dim=8, repeats=1, only=["dense"]
    ),
}


def run_of(values: dict[str, Any], store: Path) -> str:
    return dsabench.train(validate(values), store=store).run_id


def drawn() -> tuple[float, float, float, float]:
    """The next numbers, of Python, NumPy, and PyTorch twice."""
    return random.random(), np.random.random(), float(torch.rand(())), float(torch.randn(5).sum())  # noqa: NPY002


def seed() -> None:
    random.seed(11)
    np.random.seed(12)  # noqa: NPY002
    torch.manual_seed(13)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_the_callers_random_state_alone(name: str, corpus: Path, tmp_path: Path) -> None:
    """With dropout, which seeds PyTorch's own generator at every step."""
    values = base(corpus, steps=4, eval_every=4)
    values["model"] = {**values["model"], "dropout": 0.1}
    run_of(values, tmp_path)
    seed()
    expected = drawn()
    seed()
    CALLS[name](values, tmp_path)
    assert drawn() == expected


def test_a_run_that_is_stopped_does_too(corpus: Path, tmp_path: Path) -> None:
    def stop(update: Update) -> None:
        raise KeyboardInterrupt

    seed()
    expected = drawn()
    seed()
    with pytest.raises(KeyboardInterrupt):
        dsabench.train(validate(base(corpus, steps=4, log_every=1)), store=tmp_path, observe=stop)
    assert drawn() == expected


@pytest.mark.parametrize("name", ["build_model", "train"])
def test_the_first_call_of_a_process_does_too(name: str, corpus: Path, tmp_path: Path) -> None:
    """What is loaded by it may draw numbers as well, as rich does."""
    values = base(corpus, steps=4, eval_every=4)
    more = "" if name == "build_model" else f", store={str(tmp_path / 'runs')!r}"
    code = (
        "import random, numpy, torch, dsabench\nfrom dsabench.spec.run import validate\n"
        "def drawn():\n    return random.random(), numpy.random.random(), float(torch.rand(()))\n"
        "def seed():\n    random.seed(1), numpy.random.seed(2), torch.manual_seed(3)\n"
        f"spec = validate({values!r})\n"
        "seed(); expected = drawn(); seed()\n"
        f"dsabench.{name}(spec{more})\n"
        "assert drawn() == expected"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
