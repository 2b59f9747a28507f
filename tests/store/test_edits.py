"""Edits of a store that keep its files valid JSON: noticed where the run is sealed, and in part where it is not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resealed import unseal
from stored_pair import values

from dsabench.audit import gate
from dsabench.errors import StoreError
from dsabench.spec.run import validate
from dsabench.store import RunRecord, SweepRecord, load_metrics, load_runs, read_run, read_sweep, write_sweep
from dsabench.store.verification import damage
from dsabench.sweeps import single_run


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = tmp_path_factory.mktemp("edits") / "runs"
    for seed in (1, 2):
        record = single_run.train(validate(values(corpus, seed=seed)), store, progress=False)
        assert record.status == "done"
    write_sweep(store, SweepRecord(id="s", spec={}, run_ids=[record.run_id], environment={"dsabench": record.version}))
    yield store
    gate.forget()


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def record_edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        path = run / "run.json"
        document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document, indent=1) + "\n")

    return edit


def lines_edit(change: Callable[[list[str]], Any]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines()
        change(lines)
        path.write_text("".join(f"{line}\n" for line in lines))

    return edit


def digit(lines: list[str], place: int, name: str) -> None:
    """Change the first digit after the point of a value, or the first one of a whole number."""
    found = re.search(rf'"{name}": -?(?:\d+\.)?(\d)', lines[place])
    assert found is not None
    other = str((int(found[1]) + 4) % 9 + 1)
    lines[place] = lines[place][: found.start(1)] + other + lines[place][found.end(1) :]


def swap(lines: list[str]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def other_run(run: Path) -> Path:
    (other,) = run.parent.glob("dense-L16-s2-*")
    return other


def copy(name: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        source = other_run(run) / name
        if source.is_dir():
            shutil.rmtree(run / name)
            shutil.copytree(source, run / name)
        else:
            shutil.copy2(source, run / name)

    return edit


def nudge(record: dict[str, Any], name: str, by: float = 1) -> None:
    record["summary"][name] += by


EDITS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "val_loss of the summary": (record_edit(lambda r: nudge(r, "val_loss")), True),
    "train_loss of the summary": (record_edit(lambda r: nudge(r, "train_loss", -1e-3)), True),
    "steps of the summary": (record_edit(lambda r: nudge(r, "steps")), True),
    "parameters": (record_edit(lambda r: nudge(r, "params")), False),
    "a field of the spec": (record_edit(lambda r: r["spec"]["train"].update(learning_rate=2e-2)), True),
    "the seed": (record_edit(lambda r: r["spec"].update(seed=3)), True),
    "a digest": (record_edit(lambda r: r["fingerprint"].update(corpus="0" * 64)), True),
    "leak": (record_edit(lambda r: r["summary"].update(leak=not r["summary"]["leak"])), False),
    "a summary key removed": (record_edit(lambda r: r["summary"].pop("val_accuracy")), False),
    "the status": (record_edit(lambda r: r.update(status="failed", error="x")), False),
    "the version": (record_edit(lambda r: r.update(version="0.1.0")), False),
    "the environment": (record_edit(lambda r: r["environment"].update(device="cuda")), False),
    "the order": (record_edit(lambda r: r.update(order=r["order"] + 1)), False),
    "val_loss of the last evaluation": (lines_edit(lambda lines: digit(lines, -1, "val_loss")), True),
    "val_loss of an evaluation before": (lines_edit(lambda lines: digit(lines, 0, "val_loss")), False),
    "the last step": (lines_edit(lambda lines: digit(lines, -1, "step")), True),
    "a step": (lines_edit(lambda lines: digit(lines, 2, "step")), False),
    "a line removed": (lines_edit(lambda lines: lines.pop(2)), False),
    "a line doubled": (lines_edit(lambda lines: lines.insert(2, lines[2])), False),
    "two lines swapped": (lines_edit(swap), False),
    "the last evaluation cut off": (lines_edit(lambda lines: lines.pop()), True),
    "all evaluations removed": (
        lines_edit(lambda lines: lines.__setitem__(slice(None), [x for x in lines if '"eval"' not in x])),
        True,
    ),
    "another run's metrics": (copy("metrics.jsonl"), True),
    "another run's checkpoint": (copy("checkpoint"), False),
    "another run's record": (copy("run.json"), True),
}
"""By what was edited: the edit, and whether it is noticed of a run without a seal too. The others cannot be: nothing
else in the store says the same once more."""


def said(store: Path, run: Path) -> str:
    """What is wrong with a run, in the words of its row or of its verification."""
    rows = load_runs(store).set_index("run_id")
    row = rows.loc[run.name]
    assert list(rows["status"].drop(run.name)) == ["done"], "the other run is as it was"
    if row["status"] in ("damaged", "unreadable"):
        return str(row["error"])
    return "; ".join(damage(run, read_run(store, run.name), weights=True))


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_a_sealed_run_is_noticed(store: Path, edit: str) -> None:
    (run,) = store.glob("dense-L16-s1-*")
    assert said(store, run) == ""
    EDITS[edit][0](run)
    assert said(store, run) != ""


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_a_run_without_a_seal_is_noticed_where_something_else_contradicts_it(store: Path, edit: str) -> None:
    for run in store.glob("dense-*"):
        unseal(run)
    (run,) = store.glob("dense-L16-s1-*")
    assert said(store, run) == ""
    change, can_be = EDITS[edit]
    change(run)
    assert bool(said(store, run)) is can_be


@pytest.mark.parametrize("seal", [None, "removed", {}, {"digest": ""}, {"digest": "0" * 32, "files": None}])
def test_a_seal_that_is_missing_or_none_is_noticed(store: Path, seal: Any) -> None:
    (run,) = store.glob("dense-L16-s1-*")
    for path in (run / "run.json", store / "sweeps/s.json"):
        document = json.loads(path.read_bytes())
        document["seal"] = seal
        if seal == "removed":
            del document["seal"]
        path.write_text(json.dumps(document))
    assert "damaged" in said(store, run)
    with pytest.raises(StoreError, match=r"s\.json: damaged"):
        read_sweep(store, "s")


def test_a_run_that_was_renamed_is_noticed(store: Path) -> None:
    (run,) = store.glob("dense-L16-s1-*")
    name = run.name[:-1] + ("0" if run.name[-1] != "0" else "1")
    run = run.rename(store / name)
    assert said(store, run) != ""
    record_edit(lambda record: record.update(run_id=name))(run)
    assert "not what was written" in said(store, run)
    unseal(run)
    assert "give the id" in said(store, run)


def test_runs_of_a_sweep_that_were_changed_are_noticed(store: Path) -> None:
    path = store / "sweeps/s.json"
    document = json.loads(path.read_bytes())
    document["run_ids"] = [document["run_ids"][0].replace("s2", "s1")]
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"s\.json: damaged, not what was written"):
        read_sweep(store, "s")


def test_metrics_given_to_a_run_that_had_none_are_noticed(runs: Any) -> None:
    with runs.open() as writer:
        writer.finish("done", {})
    (runs.path / "a/metrics.jsonl").write_text('{"kind": "eval", "step": 1, "val_loss": 1.0}\n')
    with pytest.raises(StoreError, match="was not there when the run ended"):
        load_metrics(runs.path)
    assert list(load_runs(runs.path)["status"]) == ["damaged"]


def test_a_byte_that_goes_bad_while_its_run_goes_on_is_noticed_at_its_end(runs: Any) -> None:
    with runs.open() as writer:
        writer.metrics({"kind": "train", "step": 1, "loss": 4.5})
        path = writer.path / "metrics.jsonl"
        with path.open("r+b") as file:
            file.seek(path.read_bytes().index(b"4.5"))
            file.write(b"5")
        writer.metrics({"kind": "train", "step": 2, "loss": 4.0})
        record: RunRecord = writer.finish("done", {})
    assert damage(writer.path, record) == ["metrics.jsonl is not what was written (its digest differs)"]
