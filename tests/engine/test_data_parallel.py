"""`train --data-parallel 2` as a whole, on a CPU: stopped, resumed by another number of processes, and killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from chaos import prepare
from shell import Shell

import dsabench
from dsabench import shutdown
from dsabench.audit import gate
from dsabench.engine import checkpoint
from dsabench.errors import LeakError, SpecError
from dsabench.spec.run import RunSpec
from dsabench.store import find_checkpoint, read_metrics, read_run
from dsabench.store.files import is_held
from dsabench.store.layout import LOCK
from dsabench.sweeps import single_run

FAR = 100_000
"""Steps that no test waits for."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return prepare(tmp_path / "config")


def spec_of(config: Path, steps: int) -> RunSpec:
    overrides: dict[str, Any] = {"attention.kind": "dsa", "train.steps": steps, "train.eval_every": 6}
    return dsabench.load_spec(str(config), overrides | {"engine.checkpoint_every": None})


def ranks_of(pid: int) -> dict[int, int]:
    """The ranks that a process has started, by their number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        if parent == pid and ranks:
            found[ranks[0]] = int(folder.name)
    return found


def values(records: list[dict[str, Any]]) -> list[float]:
    """Everything recorded but times."""
    names = ("step", "loss", "kl", "balance_loss", "grad_norm", "val_loss", "train_loss", "mass_recall", "val_kl")
    return [record[name] for record in records for name in names if record.get(name) is not None]


def test_a_stopped_run_goes_on_with_another_number_of_processes(config: Path, tmp_path: Path) -> None:
    """By one process, stopped; by two, stopped; by one to its end: as if by one all the time."""
    spec, calm, wild = spec_of(config, 60), tmp_path / "calm", tmp_path / "wild"
    whole = single_run.train(spec, calm)

    def stop_at(step: int) -> Any:
        def observe(update: Any) -> None:
            if update.step >= step:
                os.kill(os.getpid(), signal.SIGINT if step == 6 else signal.SIGTERM)

        return observe

    assert threading.current_thread() is threading.main_thread(), "or signals would not be handled"
    with shutdown.on_signals(), pytest.raises(KeyboardInterrupt):
        single_run.train(spec, wild, observe=stop_at(6))
    began = time.monotonic()
    seen: list[float] = []

    def watch(update: Any) -> None:
        seen.append(update.step)
        if update.step >= 12:
            nonlocal began
            began = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)

    with shutdown.on_signals(), pytest.raises(KeyboardInterrupt):
        single_run.train(spec, wild, data_parallel=2, observe=watch)
    assert time.monotonic() - began < shutdown.PATIENCE_S
    assert not ranks_of(os.getpid())
    record = read_run(wild, whole.run_id)
    assert record.status == "interrupted" and record.environment["data_parallel"] == 2
    saved = find_checkpoint(wild, whole.run_id)
    assert saved is not None and 12 <= checkpoint.steps_done(saved) < 60
    assert min(seen) >= 6, "it went on from the checkpoint of one process"
    done = single_run.train(spec, wild)
    assert done.status == "done" and done.environment.get("data_parallel") is None
    ours, theirs = (values(read_metrics(store, whole.run_id)) for store in (calm, wild))
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_nothing_is_left(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line, which says one thing and says it once."""
    shell, store = Shell(tmp_path, capsys, monkeypatch), tmp_path / "store"
    killed: list[int] = []

    def kill() -> None:
        for _ in range(1200):
            time.sleep(0.05)
            if any(store.glob("*/checkpoint/state.json")):
                killed.extend(ranks_of(os.getpid()).values())
                os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    words = ["train", "--config", str(config), "--store", str(store), "--set", f"train.steps={FAR}"]
    code, out, err = shell(*words, "--set", "engine.checkpoint_every=6", "--data-parallel", "2")
    killer.join()
    (record,) = [read_run(store, path.parent.name) for path in store.glob("*/run.json")]
    assert (code, record.status) == (1, "failed")
    assert record.error is not None
    assert "rank 1 of 2 was killed by SIGKILL" in record.error and "the same command goes on" in record.error
    assert (out + err).count("SIGKILL") <= 2 and "Traceback" not in out + err and "torch" not in err
    assert err.count("dense L=16 seed=1") == 1
    assert len(killed) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in killed)
    assert not is_held(store / record.run_id / LOCK)
    assert find_checkpoint(store, record.run_id) is not None, "from which it goes on"


@pytest.mark.parametrize("size", [3, 2])
def test_what_is_refused_is_refused_before_any_process_starts(
    size: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch without equal shares; a leak."""

    def refuse(*args: Any) -> None:
        raise LeakError("a leak")

    monkeypatch.setattr(gate, "refuse_leaks", refuse)
    monkeypatch.setattr(
        "dsabench.engine.data_parallel.leader._Agent.start", lambda agent: pytest.fail("a process started")
    )
    with pytest.raises(LeakError if size == 2 else SpecError):
        single_run.train(spec_of(config, 24), tmp_path / "store", data_parallel=size)
    assert not (tmp_path / "store").exists()
