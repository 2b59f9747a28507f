"""One run on the shares of two processes: the same training as by one, and defects that would not be are noticed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch

from dsabench.data import Batch
from dsabench.engine.data_parallel.leader import spread
from dsabench.engine.data_parallel.ranks import BUCKET, Ranks, _buckets
from dsabench.engine.device import Execution, environment, resolve
from dsabench.engine.step import dropout_seed
from dsabench.errors import DeviceError, SpecError

TIMES = ("seconds", "tokens_per_second", "eval_seconds")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process has, and what each of two has; of documents that are shorter than a packed window."""
    folder, generator = tmp_path_factory.mktemp("ranks"), np.random.default_rng(1)
    (folder / "corpus").mkdir()
    for i in range(60):
        text = "".join(generator.choice(list("abcdefgh "), int(generator.integers(3, 40)) if i % 10 else 60))
        (folder / f"corpus/{i}.txt").write_text(text, encoding="ascii")
    command = [sys.executable, ranks.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    processes: list[dict[str, Any]] = json.loads(done.stdout)
    return processes


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Between two series of records, in any number but times."""
    assert [(record["kind"], record["step"], record["stage"]) for record in one] == [
        (record["kind"], record["step"], record["stage"]) for record in other
    ]
    names = [(i, name) for i, record in enumerate(one) for name in record if name not in TIMES]
    pairs = [(one[i][name], other[i][name]) for i, name in names if isinstance(one[i][name], float)]
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_processes_train_as_one_does(case: str, found: list[dict[str, Any]]) -> None:
    """Every recorded number: losses, balance loss, gradient norms, router statistics, evaluations."""
    one, first, second = (process[case] for process in found)
    assert largest_difference(one["records"], first["records"]) < 1e-5
    assert first["bits"] == second["bits"], "and both have the same model"
    stages = {record["stage"] for record in one["records"]}
    assert stages == ({"dense"} if case == "dense" else {"dense", "sparse"})


def test_what_is_recorded_is_recorded_once(found: list[dict[str, Any]]) -> None:
    _, first, second = (process["dense"]["records"] for process in found)
    assert [record["kind"] for record in first].count("eval") == 3
    assert not [record for record in second if record["kind"] == "eval"]


@pytest.mark.parametrize("defect", ranks.DEFECTS)
def test_a_defect_is_noticed(defect: str, found: list[dict[str, Any]]) -> None:
    one, first, second = found[0]["packed"], found[1][defect], found[2][defect]
    differs = largest_difference(one["records"], first["records"]) > 1e-4
    assert differs or first["bits"] != second["bits"]


def test_parameters_that_drift_apart_end_the_run(found: list[dict[str, Any]]) -> None:
    assert found[1]["drift"] is None, "rank 0 is what the others are compared with"
    assert found[2]["drift"] == "the parameters of rank 1 are no longer those of rank 0"


def test_shares_are_the_batch_in_order() -> None:
    batch = Batch(np.arange(24, dtype=np.int32).reshape(6, 4), scored=np.ones((6, 3), bool))
    shares = [Ranks(rank, 3).share(batch) for rank in range(3)]
    assert (np.concatenate([share.tokens for share in shares]) == batch.tokens).all()
    assert all(share.scored is not None and share.scored.shape == (2, 3) for share in shares)
    assert Ranks().share(batch) is batch


def test_buckets_hold_everything_once_and_not_too_much() -> None:
    tensors = [torch.empty(n, device="meta") for n in (3, BUCKET, 5, BUCKET // 2, BUCKET // 2)]
    tensors.append(torch.empty(2, dtype=torch.bfloat16, device="meta"))
    buckets = list(_buckets(tensors))
    assert [len(bucket) for bucket in buckets] == [1, 1, 2, 1, 1]
    assert all(one is other for one, other in zip(tensors, itertools.chain(*buckets), strict=True))


def test_every_rank_drops_out_others() -> None:
    seeds = {dropout_seed(1, step, rank) for step in range(3) for rank in range(3)}
    assert len(seeds) == 9
    assert dropout_seed(1, 2) == dropout_seed(1, 2, 0)


@pytest.mark.parametrize(
    ("engine", "size", "error", "said"),
    [
        ({}, 3, SpecError, "does not divide the batch of 4 windows; 1, 2, 4 would"),
        ({}, 0, SpecError, "accepted: 1 or more"),
        ({"device": "cuda:1"}, 2, SpecError, "engine.device = cuda:1 is one GPU"),
        ({"device": "cuda"}, 4, DeviceError, "needs 4 CUDA GPUs, and there are 2; at most 2 will do"),
        ({"device": "mps"}, 2, DeviceError, "mps is one"),
        ({"device": "cuda", "compile": "full"}, 2, SpecError, "engine.compile = full"),
    ],
)
def test_what_cannot_be_spread_is_refused(
    engine: dict[str, Any],
    size: int,
    error: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = ranks.spec_of("dense", tmp_path)
    spec = spec.model_copy(update={"engine": spec.engine.model_copy(update=engine)})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = torch.device(engine.get("device", "cpu"))
    execution = Execution(device, "fp32", False, False, compiled=engine.get("compile") == "full")
    with pytest.raises(error, match=said):
        spread(spec, execution, size)


def test_an_execution_says_how_many_processes_it_has(tmp_path: Path) -> None:
    spec = ranks.spec_of("dense", tmp_path)
    alone = resolve(spec.engine)
    two = spread(spec, alone, 2)
    assert spread(spec, alone, 1) == alone
    assert environment(two)["data_parallel"] == 2 and "data_parallel" not in environment(alone)
    assert two.describe() != alone.describe(), "or their step times would be averaged"
