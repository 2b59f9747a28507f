"""Sweeps and single runs over a store with damaged runs: named, neither taken for done nor trained over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import hurt
import pytest
from chaos import prepare
from resealed import unseal
from shell import Shell

import dsabench
from dsabench.errors import StoreError
from dsabench.store import DamagedError, load_runs, seal_run
from dsabench.store.seals import checkpoint_seal
from dsabench.sweeps import plan

RECORDED = Path(__file__).parent.parent / "recorded_store"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def half(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one done run."""
    store = tmp_path_factory.mktemp("half") / "runs"
    assert dsabench.train(spec(config), store=store).status == "done"
    return store


@pytest.fixture
def store(half: Path, tmp_path: Path) -> Path:
    shutil.copytree(half, tmp_path / "runs")
    return tmp_path / "runs"


def spec(config: Path) -> dsabench.RunSpec:
    return dsabench.load_spec(str(config), overrides={"length": 16, "attention.kind": "dense", "seed": 1})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("damage", hurt.ALL, ids=lambda f: f.__name__)
def test_a_damaged_done_run_is_neither_skipped_nor_trained_over(
    store: Path, config: Path, damage: Callable[[Path], None]
) -> None:
    folder = next(store.glob("dense-*"))
    damage(folder)
    before = files(folder)
    (planned,) = plan.plan([spec(config)], store)
    assert planned.status == "damaged" and not planned.is_left
    assert f"dsabench runs rm {folder.name}" in planned.problem and "the same command then trains it" in planned.problem
    with pytest.raises(DamagedError, match="not taken for done, and not trained over"):
        dsabench.train(spec(config), store=store, progress=False)
    assert files(folder) == before


def test_the_other_runs_of_a_sweep_are_trained(store: Path, config: Path, shell: Shell, tmp_path: Path) -> None:
    folder = next(store.glob("dense-*"))
    hurt.metrics_digit(folder)
    before = files(folder)
    words = ("sweep", "--config", str(config), "--lengths", "16", "--attentions", "dense", "dsa", "--seeds", "1")
    words = (*words, "--store", str(store), "--out", str(tmp_path / "out"))
    code, out, err = shell(*words, "--dry-run")
    assert code == 0 and f"WARNING: run {folder.name}: damaged (metrics.jsonl" in out
    code, out, err = shell(*words)
    assert code == 1
    assert err.index(f"WARNING: run {folder.name}: damaged") < err.index("dsa-L16-s1"), err
    assert "1 run is damaged and was left out" in json.loads((tmp_path / "out" / "summary.json").read_text())["answer"]
    assert files(folder) == before
    assert dict(load_runs(store).groupby("status").size()) == {"damaged": 1, "done": 1}
    shell("runs", "rm", folder.name, "--yes", "--store", str(store))
    code, out, err = shell(*words)
    assert code == 0 and dict(load_runs(store).groupby("status").size()) == {"done": 2}


def test_a_run_of_a_newer_version_is_not_advised_to_be_removed(store: Path, config: Path) -> None:
    folder = next(store.glob("dense-*"))
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    (planned,) = plan.plan([spec(config)], store)
    assert not planned.is_left and "runs rm" not in planned.problem and "newer dsabench" in planned.problem


def test_a_sealed_run_of_before_resumes_to_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the seal that it was given, its checkpoint is verified, and what came before it is kept."""
    shutil.copytree(RECORDED / "corpus", tmp_path / "corpus")
    shutil.copy(RECORDED / "sweep.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    spec_ = dsabench.load_spec("sweep.yaml", overrides={"seed": 9, "attention.kind": "dsa"})
    ends = []
    for name in ("sealed", "unsealed"):
        store = tmp_path / name
        shutil.copytree(RECORDED / "store", store)
        folder = next(store.glob("dsa-L16-s9-*"))
        if name == "sealed":
            assert seal_run(store, folder.name) == "sealed"
            seal = checkpoint_seal(folder / "checkpoint")
            assert seal is not None and 0 < seal.metrics.size <= (folder / "metrics.jsonl").stat().st_size
            assert seal_run(store, folder.name) == "was sealed"
        assert dsabench.train(spec_, store=store, progress=False).status == "done"
        ends.append([r["val_loss"] for r in dsabench.store.read_metrics(store, folder.name) if r["kind"] == "eval"])
    assert ends[0] == ends[1]


def test_a_damaged_checkpoint_is_not_sealed(store: Path) -> None:
    folder = next(store.glob("dense-*"))
    unseal(folder)
    for path in (folder / "checkpoint").iterdir():
        seal_before = (folder / "run.json").read_bytes()
        assert b'"seal"' not in seal_before, path
    assert seal_run(store, folder.name) == "sealed"
    hurt.flip(folder / "checkpoint" / "model.safetensors", -3)
    with pytest.raises(StoreError, match=r"model\.safetensors is not what was written"):
        seal_run(store, folder.name)
