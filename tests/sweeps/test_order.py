"""What travels between a driver and its nodes, and how it comes into the store; without Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dsabench
from dsabench.engine.sink import Update
from dsabench.errors import StoreError
from dsabench.store import RunBusyError, RunRecord, read_metrics, read_run
from dsabench.sweeps.launcher import Busy, Job
from dsabench.sweeps.ray.node import Began, Checkpoint, Lines, Note, Report, Result, together
from dsabench.sweeps.ray.payload import PIECE_BYTES, absolute, pieces
from dsabench.sweeps.ray.ray_session import Placement
from dsabench.sweeps.ray.receive import Arrival


@pytest.mark.parametrize(
    ("cpus", "gpus", "there", "fit"),
    [
        (1, 0, {"CPU": 3.0}, 3),
        (4, 0, {"CPU": 11.0}, 2),
        (1, 1, {"CPU": 64.0, "GPU": 8.0}, 8),
        (1 / 3, 1 / 3, {"CPU": 64.0, "GPU": 2.0}, 6),
        (1, 1, {"CPU": 2.0, "GPU": 8.0}, 2),
        (1 / 93, 1 / 93, {"CPU": 1.0, "GPU": 1.0}, 93),  # the quotient is a little less
        (1, 1, {"CPU": 4.0}, 0),
    ],
)
def test_as_many_runs_fit_as_whole_ones_do(cpus: float, gpus: float, there: dict[str, float], fit: int) -> None:
    assert Placement(cpus, gpus).fits(there) == fit


def test_what_travels_together_stays_in_order_and_within_bounds() -> None:
    big = [bytes(PIECE_BYTES // 2) for _ in range(5)]
    update = Update(1, 2, 3.0, None, 4.0)
    result = Result(Busy())
    reports: list[Report] = [Began("a"), Note("b"), update, Lines(b"c"), Checkpoint({"d": 1}), *big, result]
    batches = list(together(reports))
    assert [report for batch in batches for report in batch] == reports
    assert batches[0] == [Began("a"), Note("b")] and batches[1] == [update]  # these do not wait
    assert all(sum(len(r) for r in batch if isinstance(r, bytes)) <= PIECE_BYTES for batch in batches)


def test_no_path_depends_on_the_folder_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = dsabench.load_spec("quick").model_dump(mode="json")
    spec["data"] |= {"source": "path:texts/*.txt", "tokenizer": "my/tokenizer.json"}
    there = absolute(spec, cpu=True)
    assert there["data"]["source"] == f"path:{tmp_path}/texts/*.txt"
    assert there["data"]["tokenizer"] == f"{tmp_path}/my/tokenizer.json"
    assert there["engine"]["device"] == "cpu" and absolute(spec, cpu=False)["engine"]["device"] == "auto"
    assert absolute({**spec, "data": {"source": "sotu", "tokenizer": "bpe"}}, cpu=True)["data"] == {
        "source": "sotu",
        "tokenizer": "bpe",
    }


@pytest.fixture
def job() -> Job:
    return Job(dsabench.load_spec("quick"), "sweep", run_id="dense-L64-s1-00000000")


def expected(job: Job, store: Path) -> Arrival:
    arrival = Arrival.expect(job, store, {"corpus": "c"})
    assert isinstance(arrival, Arrival)
    return arrival


def record(job: Job, status: Any, **more: Any) -> RunRecord:
    return RunRecord(run_id=job.run_id, status=status, spec={}, fingerprint={}, environment={"device": "there"}, **more)


def test_a_run_is_running_from_when_it_is_sent_out_and_ends_as_its_node_says(job: Job, tmp_path: Path) -> None:
    arrival = expected(job, tmp_path)
    assert read_run(tmp_path, job.run_id).status == "running"
    with pytest.raises(RunBusyError):
        Arrival.expect(job, tmp_path, {"corpus": "c"})
    arrival.lines(b'{"kind": "train", "step": 1, "loss": NaN}\n{"kind": "eval", "step": 2}\n')
    arrival.end(record(job, "done", summary={"val_loss": 1.0}), None)
    stored = read_run(tmp_path, job.run_id)
    assert (stored.status, stored.summary, stored.environment) == ("done", {"val_loss": 1.0}, {"device": "there"})
    assert stored.spec == job.spec.model_dump(mode="json") and stored.fingerprint == {"corpus": "c"}
    assert [r["step"] for r in read_metrics(tmp_path, job.run_id)] == [1, 2]
    assert Arrival.expect(job, tmp_path, {"corpus": "c"}) == stored


def test_a_checkpoint_that_does_not_come_whole_leaves_the_one_before(job: Job, tmp_path: Path) -> None:
    arrival = expected(job, tmp_path)
    state = json.dumps({"step": 4}).encode()
    arrival.lines(b'{"kind": "train", "step": 4}\n')
    arrival.checkpoint({"state.json": len(state), "empty": 0}, iter([state[:3], state[3:]]).__next__)
    arrival.lines(b'{"kind": "train", "step": 6}\n')

    def cut_off() -> bytes:
        raise ConnectionAbortedError("the node is gone")

    with pytest.raises(StoreError, match="checkpoint: the node is gone"):
        arrival.checkpoint({"state.json": 5}, cut_off)
    step, metrics, files = arrival.rewind()
    assert (step, metrics) == (4, b'{"kind": "train", "step": 4}\n')
    del files["seal.json"]
    assert {name: b"".join(pieces(path)) for name, path in files.items()} == {"state.json": state, "empty": b""}
    arrival.give_up()
    assert read_run(tmp_path, job.run_id).status == "interrupted"


def test_a_stored_failure_is_trained_again_only_when_asked(job: Job, tmp_path: Path) -> None:
    failed = expected(job, tmp_path).died("by a fault", "its last words")
    assert failed.status == "failed" and "by a fault" in str(failed.error)
    assert (tmp_path / job.run_id / "log.txt").read_text() == "its last words"
    assert Arrival.expect(job, tmp_path, {}) == failed
    again = expected(replace(job, retry_failed=True), tmp_path)
    assert read_run(tmp_path, job.run_id).status == "running"
    again.give_up()


def test_a_death_of_this_machine_is_found(job: Job, tmp_path: Path) -> None:
    expected(job, tmp_path).give_up()
    (tmp_path / job.run_id / ".death.tmp").write_text("Fatal Python error: Segmentation fault\n...")
    found = Arrival.expect(job, tmp_path, {})
    assert isinstance(found, RunRecord) and found.status == "failed"
    assert "Fatal Python error: Segmentation fault" in str(found.error)
