"""`dsabench runs verify` and `runs seal`, and what every command says of a damaged run."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import hurt
import pandas as pd
import pytest
from resealed import reseal, unseal
from shell import Shell
from synthetic import experiment

from dsabench.spec.rerun_command import command_words
from dsabench.store import StoreHealth, load_runs, read_run
from dsabench.store.files import acquire

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store of one sweep of 8 runs, one of them with a checkpoint."""
    store = tmp_path_factory.mktemp("whole") / "runs"
    ids = experiment(store, lengths=(64,), seeds=(1, 2, 3, 4), evaluations=2)
    saved = store / ids[1] / "checkpoint"
    saved.mkdir()
    (saved / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (saved / "state.json").write_text('{"step": 500}')
    for run_id in ids:
        reseal(store / run_id)
    return store


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "runs")
    return tmp_path / "runs"


def dsa(store: Path, place: int = 0) -> Path:
    """The folder of a DSA run; the first has a checkpoint."""
    return sorted(store.glob("dsa-*"))[place]


def health(shell: Shell, store: Path, *words: str) -> StoreHealth:
    code, out, _ = shell("runs", "verify", *words, "--store", store, "--json")
    found = StoreHealth.model_validate_json(out)
    assert code == (0 if found.ok else 1)
    return found


def test_a_whole_store_is_sealed(store: Path, shell: Shell) -> None:
    code, out, err = shell("runs", "verify", "--store", store)
    assert code == 0 and not err and "8 sealed (what was written)" in out
    assert "damaged" not in out and "unsealed" not in out
    found = health(shell, store, "--all")
    assert found.counts == {"sealed": 8, "unsealed": 0, "damaged": 0, "running": 0} and found.bytes > 10_000


@pytest.mark.parametrize("damage", hurt.ALL, ids=lambda f: f.__name__)
def test_damage_is_named_with_the_way_out_wherever_the_run_is_shown(
    store: Path, shell: Shell, tmp_path: Path, damage: Damage
) -> None:
    folder = dsa(store, 1)
    before = shell("compare", "--store", store, "--json")[1]
    damage(folder)
    run = next(run for run in health(shell, store).runs if run.run_id == folder.name)
    assert run.state == "damaged" and run.problems and not run.checkpoint
    assert run.commands[0] == f"dsabench runs rm {folder.name} --store {store}"
    assert run.commands[1] == f"dsabench sweep --store {store}"  # by the sweep's record
    code, out, _ = shell("runs", "verify", "--store", store)
    assert code == 1 and f"{folder.name}: damaged" in out and run.problems[0] in out.replace("\n", " ")
    assert all(command in out for command in run.commands)

    row = load_runs(store).set_index("run_id").loc[folder.name]
    assert row["status"] in ("damaged", "unreadable") and row["error"]
    for words in (("runs",), ("compare",), ("plot", "learning", "--out", tmp_path / "p")):
        _, out, err = shell(*words, "--store", store)
        assert folder.name in out + err and "amaged" in out + err, words
    document = json.loads(shell("compare", "--store", store, "--json")[1])
    assert any(folder.name in line and "damaged" in line for line in document["warnings"])
    assert "1 run is damaged and was left out" in document["answer"]
    judged = document["tables"][0]["rows"][0]["seeds"]
    assert len(judged) == 3 and len(json.loads(before)["tables"][0]["rows"][0]["seeds"]) == 4
    assert {run["run_id"] for run in document["left_out"]} >= {folder.name}
    shell("report", "--store", store, "--out", tmp_path / "r")
    assert "1 run is damaged and was left out" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", hurt.ALL, ids=lambda f: f.__name__)
def test_one_run_is_shown_as_damaged_or_refused(store: Path, shell: Shell, damage: Damage) -> None:
    folder = dsa(store, 1)
    damage(folder)
    for words in (("runs", "show", folder.name), ("runs", "diff", folder.name, dsa(store, 0).name)):
        code, out, err = shell(*words, "--store", store)
        assert "damaged" in out + err and code in (0, 2), words
    code, out, _ = shell("runs", "show", folder.name, "--store", store, "--json")
    if code == 0:
        document = json.loads(out)
        assert document["seal_state"] == "damaged" and document["damage"]


def test_tables_of_metrics_leave_damaged_runs_out(store: Path, shell: Shell, tmp_path: Path) -> None:
    hurt.metrics_digit(dsa(store, 1))
    hurt.record_cut(dsa(store, 2))
    code, out, err = shell("runs", "export", str(tmp_path / "m.parquet"), "--metrics", "--store", store)
    assert code == 0 and "of 6 runs" in out and "2 runs are damaged" in err
    assert pd.read_parquet(tmp_path / "m.parquet")["run_id"].nunique() == 6


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_damaged_weights_are_named_and_the_results_stand(store: Path, shell: Shell, place: int) -> None:
    folder = dsa(store)
    hurt.flip(folder / "checkpoint" / "model.safetensors", place)
    found = health(shell, store, folder.name)
    assert [run.run_id for run in found.runs] == [folder.name] and found.counts["damaged"] == 1
    assert not found.runs[0].problems and "model.safetensors" in found.runs[0].checkpoint[0]
    assert "its results stand" in found.runs[0].advice
    assert load_runs(store).set_index("run_id").loc[folder.name, "status"] == "done"


def test_the_command_of_the_spec_is_given_where_no_sweep_is_known(store: Path, shell: Shell) -> None:
    shutil.rmtree(store / "sweeps")
    command = shlex.join([*command_words(read_run(store, dsa(store, 1).name).spec), "--store", str(store)])
    hurt.metrics_digit(dsa(store, 1))
    hurt.record_seed(dsa(store, 2))  # its spec cannot be believed
    found = {run.run_id: run for run in health(shell, store).runs}
    assert found[dsa(store, 1).name].commands[1:] == [command]
    assert len(found[dsa(store, 2).name].commands) == 1


def test_a_damaged_sweep_is_named(store: Path, shell: Shell) -> None:
    path = next((store / "sweeps").glob("*.json"))
    path.write_text(path.read_text().replace('"margin": 0.02', '"margin": 0.12'))
    found = health(shell, store)
    assert not found.ok and path.name in found.sweeps[0].problem and "remove the file" in found.sweeps[0].advice
    code, out, _ = shell("runs", "verify", "--store", store)
    assert code == 1 and path.name in out


def test_a_damaged_cache_is_no_damage_and_is_made_anew(store: Path, shell: Shell) -> None:
    shell("compare", "--store", store)
    for name in ("index.parquet", "curves.parquet"):
        hurt.flip(store / name, 100)
    (store / ".removed.x.0123").mkdir()
    found = health(shell, store)
    assert found.ok and len(found.notes) == 3
    shell("compare", "--store", store)
    assert len(health(shell, store).notes) == 1


def test_a_run_that_trains_is_not_looked_at_and_not_sealed(store: Path, shell: Shell) -> None:
    folder = dsa(store, 1)
    document = json.loads((folder / "run.json").read_text())
    document |= {"status": "running", "version": "0.2.0"}
    del document["seal"]
    (folder / "run.json").write_text(json.dumps(document))
    before = (folder / "run.json").read_bytes()
    lock = acquire(folder / ".lock", 0)
    assert lock is not None
    try:
        found = health(shell, store)
        assert found.ok and found.counts["running"] == 1
        code, out, _ = shell("runs", "seal", "--all", "--store", store)
        assert code == 0 and "1 left alone while it trains" in out
    finally:
        lock.release()
    assert (folder / "run.json").read_bytes() == before


def test_what_is_unsealed_is_said_once(store: Path, shell: Shell) -> None:
    assert "seal" not in shell("runs", "--store", store)[2]
    for folder in store.glob("d*-L*"):
        unseal(folder)
    assert shell("runs", "--store", store)[2].count("without a seal") == 1
    code, out, _ = shell("runs", "verify", "--store", store)
    assert code == 0 and "8 unsealed" in out and out.count("runs seal --all") == 1
    assert "stored before 0.3" in shell("runs", "show", dsa(store).name, "--store", store)[1]
    out = "".join(shell("compare", "--store", store)[1:])
    assert "seal" not in out


def test_sealing_needs_names_or_all(store: Path, shell: Shell) -> None:
    assert shell("runs", "seal", "--store", store)[0] == 2
    assert shell("runs", "seal", "--all", dsa(store).name, "--store", store)[0] == 2
    assert shell("runs", "verify", "--all", dsa(store).name, "--store", store)[0] == 2


@pytest.mark.parametrize("damage", hurt.UNSEALED, ids=lambda f: f.__name__)
def test_sealing_refuses_what_is_damaged_by_name(store: Path, shell: Shell, damage: Damage) -> None:
    for folder in store.glob("d*-L*"):
        unseal(folder)
    bad = dsa(store, 1)
    damage(bad)
    before = (bad / "run.json").read_bytes()
    code, out, _ = shell("runs", "seal", "--all", "--store", store)
    assert code == 1 and f"{bad.name}: not sealed" in out and "7 runs sealed" in out
    assert (bad / "run.json").read_bytes() == before
    found = health(shell, store)
    assert found.counts == {"sealed": 7, "unsealed": 0, "damaged": 1, "running": 0}
    assert "7 had a seal" in shell("runs", "seal", "--all", "--store", store)[1]


def test_the_schema_describes_the_document(store: Path, shell: Shell) -> None:
    schema = json.loads(shell("schema", "verify")[1])
    hurt.record_digit(dsa(store, 1))
    document = json.loads(shell("runs", "verify", "--store", store, "--json")[1])
    assert document.keys() == schema["properties"].keys()
    assert document["runs"][0].keys() == schema["$defs"]["RunHealth"]["properties"].keys()


@pytest.mark.parametrize("kinds", ["dense", "d*"])
def test_where_no_baseline_is_whole_the_reason_is_said(store: Path, shell: Shell, tmp_path: Path, kinds: str) -> None:
    for folder in store.glob(f"{kinds}-L*"):
        hurt.metrics_digit(folder)
    code, _, err = shell("compare", "--store", store)
    assert code == 2 and "runs are damaged and were left out" in err
    code, _, err = shell("report", "--store", store, "--out", tmp_path / "r")
    assert code == 0 and "runs are damaged" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_sealing_adds_a_seal_and_nothing_else(store: Path, shell: Shell) -> None:
    """So that an earlier version, which keeps fields that it does not know, reads what it read."""
    before = {}
    for folder in store.glob("d*-L*"):
        unseal(folder)
        before[folder.name] = json.loads((folder / "run.json").read_text())
    assert "8 runs sealed" in shell("runs", "seal", "--all", "--store", store)[1]
    for name, document in before.items():
        after = json.loads((store / name / "run.json").read_text())
        assert after.pop("seal")["files"] and after == document
