"""Children of a parent trained elsewhere: by worker processes, on a node without the store, and reproduced."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from single_runs import base

import dsabench
from dsabench.reproduction.train_again import reproduce
from dsabench.spec.run import RunSpec, validate
from dsabench.spec.sweep import Sweep
from dsabench.store import read_run
from dsabench.sweeps import plan, single_run
from dsabench.sweeps.launcher import Ended
from dsabench.sweeps.origin import WEIGHTS, identity_of, origin_of
from dsabench.sweeps.ray import node
from dsabench.sweeps.ray.payload import ORIGIN, Order
from dsabench.sweeps.schedule import run_sweep
from dsabench.sweeps.workers.pool import Workers

PARENT = {"parent": {"attention.kind": "dense", "train.steps": 6}}


def values_of(corpus: Path, start: Any = PARENT) -> dict[str, Any]:
    return {**base(corpus, steps=4, eval_every=2, log_every=1, warmup_steps=1), "start": start}


@pytest.fixture(scope="module")
def family(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("family") / "runs"
    assert single_run.train(validate(values_of(corpus)), store).status == "done"
    return store


def child_of(store: Path) -> Any:
    return read_run(store, next(path.name for path in store.glob("dsa-*")))


def test_workers_train_a_parent_once_and_children_after_it(corpus: Path, family: Path, tmp_path: Path) -> None:
    sweep = Sweep(values_of(corpus), {"attention.kind": ["dense", "dsa"]})
    specs = sweep.runs()
    workers = Workers(tmp_path, specs[0].engine, ["cpu", "cpu"], 1, print)
    execution = single_run.resolve(specs[0].engine)
    records = list(run_sweep(sweep, plan.plan(specs, tmp_path), tmp_path, execution, launcher=workers))
    assert [record.status for record in records] == ["done"] * 3
    assert len({record.run_id for record in records}) == 3
    ours, theirs = child_of(tmp_path), child_of(family)
    assert (ours.run_id, ours.summary["val_loss"]) == (theirs.run_id, theirs.summary["val_loss"])
    assert ours.environment["start"] == theirs.environment["start"]


def test_a_node_without_the_store_trains_the_same_child(corpus: Path, family: Path) -> None:
    spec: RunSpec = validate(values_of(corpus))
    name, digests = identity_of(spec, family)
    origin = origin_of(spec, family, digests, print)
    assert origin is not None and origin.folder is not None
    order = Order(name, spec.model_dump(mode="json"), digests, False, 1, 1, b"", origin.about)
    weights = (origin.folder / WEIGHTS).read_bytes()
    reports = list(node.train_on_node(order, {}, {ORIGIN + WEIGHTS: [weights]}))
    last = reports[-1]
    assert isinstance(last, node.Result) and isinstance(last.outcome, Ended), last
    ours, theirs = last.outcome.record, child_of(family)
    assert (ours.run_id, ours.status) == (theirs.run_id, "done")
    assert ours.summary["val_loss"] == theirs.summary["val_loss"]
    assert ours.environment["start"] == theirs.environment["start"]
    assert dataclasses.replace(origin, folder=None).point.steps == 6


@pytest.mark.parametrize("start", ["parent", "run"])
def test_a_child_is_reproduced_to_the_bit(corpus: Path, family: Path, tmp_path: Path, start: str) -> None:
    """With a parent by trained-again weights, with a stored run by its own."""
    family = Path(shutil.copytree(family, tmp_path / "family"))  # which gets another child here
    chosen = PARENT if start == "parent" else {"run": next(path.name for path in family.glob("dense-*"))}
    record = single_run.train(validate(values_of(corpus, chosen)), family)
    lines: list[str] = []
    found = reproduce(family, record.run_id, into=tmp_path / "again", notify=lines.append)
    assert found.verdict == "same bits"
    said = [line for line in lines if "was trained again: the same weights as then" in line]
    assert len(said) == (start == "parent")
    assert len(dsabench.load_runs(tmp_path / "again")) == (2 if start == "parent" else 1)
