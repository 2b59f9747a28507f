"""Runs that start from a model that others trained: in a sweep, by workers, by ranks, on a node, and reproduced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from foreign_models import foreign_folder_at, hub_with
from safetensors.torch import load_file, save_file
from single_runs import base

import dsabench
from dsabench.errors import DataError, StoreError
from dsabench.reproduction.train_again import reproduce
from dsabench.spec.sweep import Sweep
from dsabench.store import RunRecord, read_run
from dsabench.sweeps import plan, single_run
from dsabench.sweeps.launcher import Ended
from dsabench.sweeps.origin import identity_of, origin_of
from dsabench.sweeps.ray import node
from dsabench.sweeps.ray.payload import ORIGIN, TOKENIZER, Order
from dsabench.sweeps.schedule import run_sweep
from dsabench.sweeps.workers.pool import Workers


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "llama"
    foreign_folder_at(path, corpus)
    return path


def sweep_from(corpus: Path, checkpoint: Path | str, axes: dict[str, list[Any]] | None = None) -> Sweep:
    values = base(corpus, steps=4, eval_every=2, log_every=1, warmup_steps=1)
    del values["model"], values["data"]["vocab_size"]
    return Sweep({**values, "start": {"checkpoint": str(checkpoint)}}, axes or {})


@pytest.fixture(scope="module")
def trained(corpus: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a DSA run of 4 steps."""
    store = tmp_path_factory.mktemp("trained") / "runs"
    assert single_run.train(sweep_from(corpus, folder).first(), store).status == "done"
    return store


def only_run(store: Path, kind: str = "dsa") -> RunRecord:
    return read_run(store, next(path.name for path in store.glob(f"{kind}-*")))


def test_workers_train_the_same_runs_and_compare_names_the_model(
    corpus: Path, folder: Path, trained: Path, tmp_path: Path
) -> None:
    sweep = sweep_from(corpus, folder, {"attention.kind": ["dense", "dsa"]})
    specs = sweep.runs()
    workers = Workers(tmp_path, specs[0].engine, ["cpu", "cpu"], 1, print)
    execution = single_run.resolve(specs[0].engine)
    records = list(run_sweep(sweep, plan.plan(specs, tmp_path), tmp_path, execution, launcher=workers))
    assert [record.status for record in records] == ["done"] * 2
    ours, theirs = only_run(tmp_path), only_run(trained)
    assert (ours.run_id, ours.summary["val_loss"]) == (theirs.run_id, theirs.summary["val_loss"])
    assert ours.environment["start"] == theirs.environment["start"]
    found = dsabench.compare(tmp_path).comparison
    assert found.tables[0].rows[0].seeds == [1]
    assert f"32 tokens: pairs are children of one parent each: 1 parent ({folder})" in found.notes
    starts = {check.name: check for check in found.checks}["Start of training"]
    assert (starts.outcome, starts.text) == ("ok", "Every run starts from a trained model.")


def test_ranks_train_the_same_run(corpus: Path, folder: Path, trained: Path, tmp_path: Path) -> None:
    record = single_run.train(sweep_from(corpus, folder).first(), tmp_path, data_parallel=2)
    theirs = only_run(trained)
    assert (record.run_id, record.status) == (theirs.run_id, "done")
    ours, alone = (
        dsabench.load_metrics(store, run_ids=[theirs.run_id]).query("kind == 'eval' and step == 0")["val_loss"].item()
        for store in (tmp_path, trained)
    )
    assert ours == pytest.approx(alone, abs=1e-5)
    assert record.summary["val_loss"] == pytest.approx(theirs.summary["val_loss"], abs=1e-3)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_node_without_the_folder_trains_the_same_run(
    shards: int, corpus: Path, folder: Path, trained: Path, tmp_path: Path
) -> None:
    """It is sent config.json, all weights and the tokenizer; the record keeps the paths of home."""
    away = tmp_path / "theirs"
    shutil.copytree(folder, away)
    if shards > 1:
        split(away, shards)
    spec = sweep_from(corpus, away).first()
    name, digests = identity_of(spec, tmp_path)
    origin = origin_of(spec, tmp_path, digests, print)
    assert origin is not None
    order = Order(name, spec.model_dump(mode="json"), digests, False, 1, 1, b"", origin.about)
    files = {ORIGIN + path.name: [path.read_bytes()] for path in origin.files}
    files[TOKENIZER] = [Path(spec.data.tokenizer).read_bytes()]
    shutil.rmtree(away)
    reports = list(node.train_on_node(order, {}, files))
    last = reports[-1]
    assert isinstance(last, node.Result) and isinstance(last.outcome, Ended), last
    ours, theirs = last.outcome.record, only_run(trained)
    assert (ours.run_id, ours.status) == (theirs.run_id, "done"), ours.error
    assert ours.summary["val_loss"] == theirs.summary["val_loss"]
    about = {**theirs.environment["start"], "checkpoint": str(away)}
    assert ours.environment["start"] == about


def split(folder: Path, shards: int) -> None:
    """The weights in several files."""
    tensors = load_file(folder / "model.safetensors")
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()


def test_a_run_is_reproduced_to_the_bit(corpus: Path, trained: Path, tmp_path: Path) -> None:
    found = reproduce(trained, only_run(trained).run_id, into=tmp_path / "again")
    assert found.verdict == "same bits"


def test_a_run_of_other_weights_is_not_reproduced(corpus: Path, folder: Path, tmp_path: Path) -> None:
    """The folder holds another model than then: said, and nothing is trained."""
    shutil.copytree(folder, tmp_path / "theirs")
    record = single_run.train(sweep_from(corpus, tmp_path / "theirs").first(), tmp_path / "runs")
    tensors = load_file(tmp_path / "theirs/model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, tmp_path / "theirs/model.safetensors")
    with pytest.raises(StoreError, match=rf"other weights than those that run {record.run_id} starts from: .*digest"):
        reproduce(tmp_path / "runs", record.run_id, into=tmp_path / "again")
    assert not list(tmp_path.glob("again/*-L*"))


def test_a_store_alone_shows_and_loads_a_run_whose_folder_is_gone(corpus: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "theirs")
    record = single_run.train(sweep_from(corpus, tmp_path / "theirs").first(), tmp_path / "runs")
    shutil.rmtree(tmp_path / "theirs")
    assert dsabench.load_model(tmp_path / "runs", record.run_id).spec.model.d_model == 24
    assert list(dsabench.load_runs(tmp_path / "runs")["status"]) == ["done"]
    with pytest.raises(DataError, match=r"theirs/tokenizer\.json.*no such file"):
        reproduce(tmp_path / "runs", record.run_id, into=tmp_path / "again")


def test_a_model_of_the_hub_is_reproduced_with_a_cache_elsewhere(
    corpus: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record names a tokenizer of a cache that is gone; the model of that commit brings it again."""
    commit = "0123456789" * 4
    shutil.copytree(folder, tmp_path / "snapshots" / commit)
    hub_with(tmp_path / "snapshots" / commit, monkeypatch)
    record = single_run.train(sweep_from(corpus, "hf:some/model").first(), tmp_path / "runs")
    (tmp_path / "snapshots").rename(tmp_path / "other")
    hub = hub_with(tmp_path / "other" / commit, monkeypatch)
    assert reproduce(tmp_path / "runs", record.run_id, into=tmp_path / "again").verdict == "same bits"
    assert {(name, revision) for name, revision, _ in hub.asked} == {("some/model", commit)}
