"""What goes wrong in a sweep: runs that fail, memory that runs out, disks that are full, runs that others train."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import others_slow
from chaos import differences, prepare
from safetensors import SafetensorError

import dsabench
from dsabench.engine import checkpoint, failures, loop
from dsabench.engine.device import resolve
from dsabench.engine.failures import smaller
from dsabench.engine.step import TrainStep
from dsabench.errors import DeviceError, StoreError
from dsabench.spec.config import load_sweep
from dsabench.spec.sweep import Sweep
from dsabench.store import RunRecord, RunWriter, find_checkpoint, records
from dsabench.sweeps import plan, single_run
from dsabench.sweeps import schedule as launch_sweep
from dsabench.sweeps.micro_batch import MicroBatches
from dsabench.sweeps.schedule import run_sweep

AXES: dict[str, list[Any]] = {"length": [16], "attention.kind": ["dense", "dsa"], "seed": [1]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def calm(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("calm") / "calm"
    assert [record.status for record in swept(config, store)] == ["done", "done"]
    return store


def sweep_of(config: Path, **axes: Any) -> Sweep:
    sweep = load_sweep(str(config))
    for path, values in {**AXES, **axes}.items():
        sweep.set_axis(path, values, "")
    return sweep


def swept(config: Path, store: Path, axes: dict[str, Any] | None = None, **more: Any) -> list[RunRecord]:
    sweep = sweep_of(config, **(axes or {}))
    planned = plan.plan(sweep.runs(), store)
    return list(run_sweep(sweep, planned, store, resolve(planned[0].spec.engine), **more))


class Places:
    """A launcher that is never given a run."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("part", ["check_origins", "_refuse_leaks", "_record_sweep"])
def test_what_fails_before_the_first_run_leaves_no_launcher_open(
    part: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise StoreError("on purpose")

    monkeypatch.setattr(launch_sweep, part, fail)
    places = Places()
    with pytest.raises(StoreError, match="on purpose"):
        swept(config, tmp_path, launcher=places)
    assert places.is_closed


# Disks


def full(monkeypatch: pytest.MonkeyPatch, code: int, where: str, after: int) -> None:
    """From now on, `after` writes to files of this name work, and none after them."""
    left = [after]

    def try_to(path: str) -> None:
        if where in path:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(code, os.strerror(code))

    write, fsync, save_file = os.write, os.fsync, checkpoint.save_file

    def save(tensors: Any, path: Path) -> None:
        try:
            try_to(str(path))
        except OSError as error:  # as safetensors says it
            raise SafetensorError(f"Error while serializing: I/O error: {error.strerror} (os error {code})") from None
        save_file(tensors, path)

    def written(fd: int, data: Any) -> int:
        try_to(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        return write(fd, data)

    def synced(fd: int) -> None:
        try_to(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        fsync(fd)

    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(checkpoint, "save_file", save)


def inodes(store: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_ino) for path in store.glob("*/run.json")}


PLACES = [
    (errno.ENOSPC, "metrics.jsonl", 10), (errno.ENOSPC, "model.safetensors", 13), (errno.ENOSPC, "state.json", 9),
    (errno.ENOSPC, "optimizer.safetensors", 8), (errno.ENOSPC, ".run.json", 5), (errno.ENOSPC, "index.parquet", 1),
    (errno.ENOSPC, ".index.json.gz", 3), (errno.ENOSPC, "sweeps/", 0), (errno.EROFS, "model.safetensors", 13),
    (errno.EROFS, "index.parquet", 1),
]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell which file a descriptor is")
@pytest.mark.parametrize(("code", "where", "after"), others_slow(PLACES, 0, 4, 8))
def test_a_sweep_that_cannot_write_stops_clearly_and_goes_on_later(
    code: int, where: str, after: int, config: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "wild"
    with monkeypatch.context() as patch:
        full(patch, code, where, after)
        with pytest.raises(StoreError, match="the disk is full" if code == errno.ENOSPC else "Read-only file system"):
            swept(config, store)
    statuses = list(dsabench.load_runs(store)["status"])
    assert set(statuses) <= {"done", "interrupted"}, "a full disk is no run's fault"
    assert not list(store.rglob("*.tmp")) and not list(store.rglob("checkpoint.new"))
    done = {path for path in inodes(store) if '"status": "done"' in path[0].read_text(encoding="utf-8")}
    assert [record.status for record in swept(config, store)] == ["done", "done"]
    assert done <= inodes(store), "what was done is as it was"
    assert differences(calm, store) == []


def test_a_store_that_vanishes_is_told(config: Path, tmp_path: Path) -> None:
    store = tmp_path / "wild"

    def vanish(update: Any) -> None:
        if store.exists():
            shutil.rmtree(store)

    with pytest.raises(StoreError, match="was the store moved, removed or unmounted"):
        swept(config, store, started=lambda run: vanish)
    assert not store.exists()


def test_a_clock_that_jumps_changes_nothing(
    config: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = [0]

    class AnyDatetime(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, datetime)

    class Clock(metaclass=AnyDatetime):
        def __new__(cls, *fields: Any, **zone: Any) -> Any:
            return datetime(*fields, **zone)

        @staticmethod
        def now(zone: Any = None) -> datetime:
            jumps[0] += 1
            return datetime.now(zone) + timedelta(days=400 * (-1) ** jumps[0])

    monkeypatch.setattr(records, "datetime", Clock)
    monkeypatch.setattr("time.time", lambda: Clock.now().timestamp())
    assert [record.status for record in swept(config, tmp_path / "wild")] == ["done", "done"]
    assert jumps[0] > 8
    assert differences(calm, tmp_path / "wild") == []


# Runs that fail


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str = "dense") -> None:
    honest = TrainStep._compute

    def compute(self: TrainStep, stage: Any) -> None:
        if self.spec.attention.kind == kind:
            raise error
        honest(self, stage)

    monkeypatch.setattr(TrainStep, "_compute", compute)


FAILURES: dict[str, tuple[Exception, str]] = {
    "memory of the device": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "4 of 4 windows"),
    "memory of the host": (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), "4 of 4 windows"),
    "a loss": (loop.TrainingDiverged("the loss became nan at step 3; a lower"), "at step 3"),
    "a bug": (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_run_says_why_and_the_sweep_goes_on(
    name: str, config: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, message = FAILURES[name]
    store = tmp_path / "wild"
    with monkeypatch.context() as patch:
        failing(patch, error)
        first = swept(config, store)
    assert [record.status for record in first] == ["failed", "done"]
    assert message in str(first[0].error) and "log.txt" in str(first[0].error)
    assert "in compute" in (store / first[0].run_id / "log.txt").read_text(encoding="utf-8")
    if name != "a bug":
        return
    assert [record.status for record in swept(config, store)] == ["failed", "done"], "it is not tried again unasked"
    assert [record.status for record in swept(config, store, retry_failed=True)] == ["done", "done"]
    assert differences(calm, store) == []


def test_a_device_that_is_lost_fails_no_other_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an illegal memory access on a GPU: every later call of the process would fail."""
    store = tmp_path / "wild"
    with monkeypatch.context() as patch:
        failing(patch, RuntimeError("CUDA error: an illegal memory access was encountered"))
        patch.setattr(failures, "is_lost", lambda execution: True)
        with pytest.raises(DeviceError, match="the same command goes on with the others"):
            swept(config, store)
    assert list(dsabench.load_runs(store)["status"]) == ["failed"]
    assert [record.status for record in swept(config, store)] == ["failed", "done"]


def test_a_failing_plugin_is_named_with_its_line(config: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from dsabench.attention.dense import Dense\n"
        "from dsabench.attention.registry import register\n"
        "from dsabench.spec.attention import AttentionSpec\n"
        "class MineSpec(AttentionSpec):\n    kind: Literal['mine'] = 'mine'\n"
        "@register\nclass Mine(Dense):\n    spec_class = MineSpec\n"
        "    def forward(self, x_BTD, context):\n"
        "        if context.step is not None and int(context.step) == 4:\n            {}['gone']\n"
        "        return super().forward(x_BTD, context)\n"
    )
    spec = dsabench.load_spec(str(config), {"plugins": [str(plugin)], "attention.kind": "mine"})
    record = single_run.train(spec, tmp_path / "runs")
    assert record.status == "failed"
    assert f"{plugin}:12: attention mine raised KeyError: 'gone'; mend it" in str(record.error)


# Memory


def scarce(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """DSA finds no memory for more than `room` windows at a time."""
    honest = TrainStep._losses

    def losses(self: TrainStep, stage: Any, share: float, tokens_BT: torch.Tensor, *rest: Any) -> torch.Tensor:
        if self.spec.attention.kind == "dsa" and len(tokens_BT) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, stage, share, tokens_BT, *rest)

    monkeypatch.setattr(TrainStep, "_losses", losses)


def cut(store: Path) -> dict[str, int]:
    return {row["run_id"][:9]: row["micro_batch"] for row in dsabench.load_runs(store).to_dict("records")}


def test_on_oom_accumulate_cuts_a_run_and_all_that_it_is_compared_with(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds at four windows a step."""
    scarce(monkeypatch, 2)
    axes = {"seed": [1, 2]}
    told: list[str] = []
    ended = swept(config, tmp_path / "runs", axes, on_oom="accumulate", notify=told.append)
    assert {record.status for record in ended} == {"done"}
    frame = dsabench.load_runs(tmp_path / "runs")
    assert (frame["micro_batch"] == 2).all() and (frame["batch_size"] == 4).all()
    again = [record.run_id for record in ended]
    assert sorted(name[:9] for name in set(again) if again.count(name) == 2) == ["dense-L16", "dense-L16"]
    assert sum("ran out of memory" in line for line in told) == 1, "the other seed is cut before it starts"
    assert len(swept(config, tmp_path / "runs", axes, on_oom="accumulate")) == 4, "and nothing is trained a third time"


def test_memory_is_halved_until_it_fits_and_fails_when_one_window_does_not(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce(monkeypatch, 1)
    swept(config, tmp_path / "runs", on_oom="accumulate")
    assert cut(tmp_path / "runs") == {"dense-L16": 1, "dsa-L16-s": 1}
    scarce(monkeypatch, 0)
    ended = {record.run_id: record for record in swept(config, tmp_path / "none", on_oom="accumulate")}
    failed = next(record for name, record in ended.items() if name.startswith("dsa"))
    assert failed.status == "failed" and "1 of 4 windows" in str(failed.error) and "--on-oom" not in str(failed.error)


@pytest.mark.slow
def test_a_kill_amid_the_cutting_leaves_no_unequal_pair(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the run that was cut is done, and before its partner is trained again."""
    scarce(monkeypatch, 2)
    sweep = sweep_of(config)
    planned = plan.plan(sweep.runs(), tmp_path / "runs")
    execution = resolve(planned[0].spec.engine)
    for record in run_sweep(sweep, planned, tmp_path / "runs", execution, on_oom="accumulate"):
        if record.run_id.startswith("dsa"):
            break
    assert cut(tmp_path / "runs") == {"dense-L16": 4, "dsa-L16-s": 2}
    swept(config, tmp_path / "runs", on_oom="accumulate")
    assert cut(tmp_path / "runs") == {"dense-L16": 2, "dsa-L16-s": 2}


def test_a_kill_before_a_runs_record_does_not_stop_the_cutting(config: Path, tmp_path: Path) -> None:
    """The folder of a run exists a moment before its record does."""
    first, second = plan.plan(sweep_of(config).runs(), tmp_path)
    (tmp_path / second.run_id).mkdir()
    (tmp_path / second.run_id / ".lock").touch()
    micro_batches = MicroBatches([first, second], tmp_path)
    assert micro_batches.lower(first, 2, tmp_path) == []
    assert micro_batches.agree(second, tmp_path).engine.micro_batch == 2


def test_a_micro_batch_divides_the_batch() -> None:
    assert [smaller(12, n) for n in (12, 6, 4, 3, 2, 1)] == [6, 3, 2, 1, 1, None]


# Runs that another process trains


@pytest.mark.parametrize("end", ["done", "failed", "dies"])
def test_a_run_that_another_process_trains_is_waited_for(
    end: str, config: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = tmp_path / "wild", list[str]()
    sweep = sweep_of(config)
    planned = plan.plan(sweep.runs(), store)
    spec = planned[0].spec.model_dump(mode="json")
    other = RunWriter.open(store, planned[0].run_id, spec=spec, fingerprint={}, environment={})
    began: list[str] = []

    def later(seconds: float) -> None:
        assert began == [planned[1].run_id], "what is free is trained first"
        if end != "dies":
            other.finish(end, {"val_loss": 1.5})
        other._lock.release()

    monkeypatch.setattr(launch_sweep.time, "sleep", later)
    ended = list(
        run_sweep(
            sweep, planned, store, resolve(planned[0].spec.engine), notify=told.append, retry_failed=True,
            started=lambda run: (began.append(run.run_id), lambda update: None)[1],
        )
    )  # fmt: skip
    assert sum("is being trained by another process" in line for line in told) == 1
    assert [record.run_id for record in ended] == [planned[1].run_id, planned[0].run_id]
    assert ended[1].status == ("failed" if end == "failed" else "done")
    assert (ended[1].summary.get("val_loss") == 1.5) == (end != "dies")
    if end == "dies":
        assert (find_checkpoint(store, planned[0].run_id) or Path()).is_dir()
        assert differences(calm, store) == []
