"""Sweeps by worker processes: the same runs as in this process, and what becomes of them when a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import others_slow
from chaos import differences, prepare
from shell import Shell

from dsabench.engine.device import resolve
from dsabench.engine.sink import Update
from dsabench.errors import DeviceError, DsabenchError, SpecError
from dsabench.spec.config import load_sweep
from dsabench.spec.sweep import Sweep
from dsabench.store import RunRecord, read_run
from dsabench.sweeps import plan
from dsabench.sweeps.plan import PlannedRun
from dsabench.sweeps.schedule import run_sweep
from dsabench.sweeps.workers.pool import Workers, devices_of

STEPS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("config"))


def sweep_of(config: Path) -> Sweep:
    sweep = load_sweep(str(config))
    for path, values in {"length": [16], "attention.kind": ["dense", "dsa"], "seed": [1, 2]}.items():
        sweep.set_axis(path, values, "")
    return sweep


@pytest.fixture(scope="module")
def calm(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store, sweep = tmp_path_factory.mktemp("calm") / "calm", sweep_of(config)
    planned = plan.plan(sweep.runs(), store)
    found = run_sweep(sweep, planned, store, resolve(planned[0].spec.engine))
    assert [run.status for run in found] == ["done"] * 4
    return store


class Swept:
    """A sweep by two workers, something of which happens at an update of one of its runs."""

    def __init__(self, config: Path, store: Path, n_workers: int = 2, concurrency: int = 1) -> None:
        self.sweep, self.store, self.told = sweep_of(config), store, list[str]()
        self.planned = plan.plan(self.sweep.runs(), store)
        self.happens: Callable[[str, Update], None] = lambda run_id, update: None
        self.workers = Workers(store, self.planned[0].spec.engine, ["cpu"] * n_workers, concurrency, self.told.append)

    def started(self, run: PlannedRun) -> Callable[[Update], None]:
        return lambda update: self.happens(run.run_id, update)

    def records(self) -> Iterator[RunRecord]:
        return run_sweep(
            self.sweep, self.planned, self.store, resolve(self.planned[0].spec.engine), launcher=self.workers,
            started=self.started, notify=self.told.append,
        )  # fmt: skip

    def pid_of(self, run_id: str) -> int:
        return next(worker.process.pid for worker in self.workers.workers if run_id in worker.jobs)


def here(swept: Swept, **more: Any) -> list[str]:
    """The rest of a sweep, in this process: how each run ended."""
    planned = plan.plan(swept.sweep.runs(), swept.store)
    execution = resolve(planned[0].spec.engine)
    return [record.status for record in run_sweep(swept.sweep, planned, swept.store, execution, **more)]


def killing(swept: Swept, victim: str, step: int = 5) -> Callable[[str, Update], None]:
    """Kills, once, the worker of a run that has come so far."""
    done: list[str] = []

    def happens(run_id: str, update: Update) -> None:
        if run_id == victim and update.step >= step and not done:
            done.append(run_id)
            os.kill(swept.pid_of(run_id), signal.SIGKILL)

    return happens


def test_a_worker_that_dies_fails_its_run_and_no_other(config: Path, calm: Path, tmp_path: Path) -> None:
    swept = Swept(config, tmp_path / "wild")
    victim = swept.planned[0].run_id
    swept.happens = killing(swept, victim)
    ended = {record.run_id: record for record in swept.records()}
    assert {name: record.status for name, record in ended.items()} == {
        run.run_id: "failed" if run.run_id == victim else "done" for run in swept.planned
    }
    assert "its process died: by SIGKILL" in str(ended[victim].error)
    assert "--retry-failed" in str(ended[victim].error)
    assert any("another one takes its place" in line for line in swept.told)
    assert all(worker.process.poll() is not None for worker in swept.workers.workers), "none is left behind"
    assert here(swept, retry_failed=True) == ["done"] * 4
    assert differences(calm, tmp_path / "wild") == []


@pytest.mark.slow
def test_of_runs_side_by_side_in_a_process_that_dies_each_is_trained_again(config: Path, tmp_path: Path) -> None:
    swept = Swept(config, tmp_path / "wild", n_workers=1, concurrency=2)
    swept.happens = killing(swept, swept.planned[0].run_id)
    assert [record.status for record in swept.records()] == ["done"] * 4
    assert sum("lost its process, by SIGKILL" in line for line in swept.told) == 2
    assert {read_run(swept.store, run.run_id).environment["concurrency"] for run in swept.planned} == {1, 2}


@pytest.mark.slow
def test_who_asks_to_stop_finds_all_runs_interrupted_and_no_process(config: Path, calm: Path, tmp_path: Path) -> None:
    swept = Swept(config, tmp_path / "wild")

    def stop(run_id: str, update: Update) -> None:
        if update.step >= 5:
            raise KeyboardInterrupt

    swept.happens = stop
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(swept.records())
    assert all(worker.process.poll() == 0 for worker in swept.workers.workers), "each stopped in order"
    found = {run.run_id: plan.status(swept.store, run.run_id) for run in swept.planned}
    assert "interrupted" in found.values()
    assert set(found.values()) <= {"interrupted", "done", "new"}
    assert time.monotonic() - began < 60
    assert here(swept) == ["done"] * 4
    assert differences(calm, tmp_path / "wild") == []


@pytest.mark.parametrize("after", others_slow([0.0, 1.5], 0))
def test_a_worker_that_is_asked_to_stop_while_it_starts_does(config: Path, tmp_path: Path, after: float) -> None:
    swept = Swept(config, tmp_path / "wild")
    time.sleep(after)
    assert not any(worker.is_ready for worker in swept.workers.workers)
    began = time.monotonic()
    swept.workers.close()
    # Before Python itself has begun, the signal ends it.
    expected = {0} if after else {0, -signal.SIGUSR1}
    assert {worker.process.poll() for worker in swept.workers.workers} <= expected
    assert time.monotonic() - began < 3


def test_workers_end_when_the_sweep_is_killed(config: Path, tmp_path: Path) -> None:
    """They checkpoint what they have, as for who asks to stop, and leave no lock."""
    store = tmp_path / "wild"
    words = ["--config", str(config), "--store", str(store), "--devices", "cpu", "--set", "train.steps=4000"]
    code = f"import sys; sys.argv = ['dsabench', 'sweep', *{words!r}]; from dsabench.cli.app import main; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as parent:
        for _ in range(600):
            running = [p for p in store.glob("*-L*") if (p / "metrics.jsonl").exists()]
            if running:
                break
            assert parent.poll() is None, parent.stdout and parent.stdout.read().decode()
            time.sleep(0.1)
        workers = children(parent.pid)
        assert len(workers) == 1
        parent.kill()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert {read_run(store, path.name).status for path in running} == {"interrupted"}
    assert all((path / "checkpoint").exists() for path in running)


def children(pid: int) -> list[int]:
    """Of a process of Linux."""
    text = Path(f"/proc/{pid}/task/{pid}/children")
    if not text.exists():
        pytest.skip("this system does not tell a process's children")
    return [int(word) for word in text.read_text(encoding="ascii").split()]


def imitation(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers that execute this code instead; `pipe` is their end."""
    start = "import sys\nfrom multiprocessing.connection import Connection\npipe = Connection(int(sys.argv[1]))"
    text = f"{start}\nsys.path[:] = pipe.recv()\n{code}"
    (folder / "worker.py").write_text(text, encoding="ascii")
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/worker.py "$4"\n', encoding="ascii")
    (folder / "python").chmod(0o700)
    monkeypatch.setattr("sys.executable", str(folder / "python"))


@pytest.mark.slow
def test_workers_that_do_not_start_end_the_sweep(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imitation(tmp_path, monkeypatch, "pipe.recv(); sys.exit('no such accelerator')")
    with pytest.raises(DeviceError, match=r"does not start: it ended with exit code 1 \(no such accelerator\)"):
        list(Swept(config, tmp_path / "wild").records())


@pytest.mark.slow
def test_a_worker_whose_device_is_lost_is_replaced(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker says of its first run that it failed and took the device with it."""
    code = """
from dsabench.sweeps.launcher import Ended
from dsabench.sweeps.workers.protocol import Ready, Result
from dsabench.store import RunRecord
pipe.recv()
job = pipe.recv()
pipe.send(Ready())
record = RunRecord(run_id=job.run_id, status="failed", spec={}, fingerprint={}, environment={})
pipe.send(Result(job.run_id, Ended(record), lost=True))
"""
    imitation(tmp_path, monkeypatch, code)
    swept = Swept(config, tmp_path / "wild")
    assert sorted(record.run_id for record in swept.records()) == sorted(run.run_id for run in swept.planned)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["cpu"], ["cpu"]),
        (["cpu", "cpu"], ["cpu", "cpu"]),
        (["all"], ["cuda:0", "cuda:1"]),
        (["1", "0"], ["cuda:1", "cuda:0"]),
        (["cuda:1"], ["cuda:1"]),
        (["2"], "there is no GPU 2; there are 2 CUDA GPUs here, counted from 0"),
        (["0", "0"], "GPU 0 twice; --concurrency has runs share a GPU"),
        (["0", "cpu"], "all, numbers of GPUs as in 0,1, or cpu are accepted"),
        (["-1"], "are accepted"),
        (["all", "0"], "are accepted"),
    ],
)
def test_devices_are_what_there_is(given: list[str], found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if isinstance(found, list):
        assert devices_of(given) == found
        return
    with pytest.raises(DsabenchError) as caught:
        devices_of(given)
    assert isinstance(caught.value, SpecError | DeviceError)
    assert found in str(caught.value)


def test_a_machine_without_gpus_says_so(shell: Shell, config: Path) -> None:
    for words, message in (
        (["--devices", "all"], "--devices all: there are 0 CUDA GPUs here; use --devices cpu, or leave it out"),
        (["--devices", "0", "1"], "there is no GPU 0"),
        (["--devices", "cpu", "--device", "cpu"], "give one of them"),
    ):
        code, _, err = shell("sweep", "--config", str(config), *words)
        assert code == 2 and message in " ".join(err.split())
