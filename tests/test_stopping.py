"""SIGINT and SIGTERM: in whatever moment they come, the run is checkpointed and ends later as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cases import others_slow
from chaos import comparable, differences, picture, prepare

import dsabench
from dsabench import shutdown
from dsabench.engine import checkpoint, segments, step_times
from dsabench.engine.device import resolve
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.slot import Slots
from dsabench.engine.step import TrainStep
from dsabench.spec.run import RunSpec
from dsabench.store import RunWriter, find_checkpoint, index
from dsabench.sweeps import single_run
from dsabench.sweeps.launcher import RunJob


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """12 steps, evaluated at 0, 6 and 12, logged every 5; of itself it would not be checkpointed before its end."""
    config = prepare(tmp_path_factory.mktemp("config"))
    return dsabench.load_spec(str(config), {"attention.kind": "dsa", "engine.checkpoint_every": None})


@pytest.fixture(scope="module")
def calm(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("calm") / "calm"
    assert single_run.train(spec, store).status == "done"
    return store


MOMENTS: dict[str, tuple[Any, str, int, int | None]] = {
    "before the first step": (TrainStep, "_compute", 1, 3),
    "in a step between two records": (TrainStep, "_compute", 8, 10),
    "in the first evaluation": (Evaluator, "evaluate", 2, None),
    "in an evaluation": (Evaluator, "evaluate", 4, 6),
    "while a record is written": (RunWriter, "metrics", 2, 5),
    "in the last evaluation": (Evaluator, "evaluate", 5, 12),
    "in the last checkpoint": (checkpoint, "save", 1, 12),
}
"""What is called for the which-th time when the signal comes, and the step that is checkpointed."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_run_is_checkpointed_where_it_is_and_ends_as_if_it_had_not_been(
    moment: str, spec: RunSpec, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threading.current_thread() is threading.main_thread(), "or signals would not be handled"
    owner, name, which, step = MOMENTS[moment]
    honest, calls = getattr(owner, name), []

    def signalled(*args: Any, **more: Any) -> Any:
        calls.append(name)
        if len(calls) == which:
            os.kill(os.getpid(), signal.SIGTERM if which % 2 else signal.SIGINT)
        return honest(*args, **more)

    store = tmp_path / "wild"
    with monkeypatch.context() as patch, shutdown.on_signals():
        patch.setattr(owner, name, signalled)
        with pytest.raises(KeyboardInterrupt):
            single_run.train(spec, store)
    (run,) = dsabench.load_runs(store).to_dict("records")
    assert run["status"] == "interrupted"
    saved = find_checkpoint(store, run["run_id"])
    assert (saved and checkpoint.steps_done(saved)) == step
    assert single_run.train(spec, store).status == "done"
    assert differences(calm, store) == []


def test_what_is_done_stays_done(spec: RunSpec, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = index.update

    def signalled(store: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        honest(store)

    with monkeypatch.context() as patch, shutdown.on_signals():
        patch.setattr(index, "update", signalled)
        with pytest.raises(KeyboardInterrupt):
            single_run.train(spec, tmp_path / "wild")
    assert differences(calm, tmp_path / "wild") == []


def test_a_run_that_waits_for_its_device_is_landed_and_checkpointed(
    spec: RunSpec, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs that share a GPU, one hears of the signal; the others are closed while their steps are under way."""
    monkeypatch.setattr(step_times, "TIMED_SEGMENTS", 1)  # then the last segment of the five is not alone
    store = tmp_path / "wild"
    place = single_run.Place(store, resolve(spec.engine), Slots(2), lambda message: None)
    training = single_run.train_by_turns(RunJob(spec), place, lambda update: None)
    next(training)
    training.close()
    (run,) = dsabench.load_runs(store).to_dict("records")
    saved = find_checkpoint(store, run["run_id"])
    assert run["status"] == "interrupted"
    assert saved is not None and checkpoint.steps_done(saved) == 12
    assert dsabench.load_metrics(store)["step"].max() == 12, "the steps are recorded, and their evaluation is owed"
    single_run.train(spec, store)
    weights = f"{run['run_id']}/checkpoint/model.safetensors"
    assert (store / weights).read_bytes() == (calm / weights).read_bytes()
    name = f"{run['run_id']}/metrics.jsonl"
    ours, theirs = (
        [{k: v for k, v in comparable(record).items() if k != "shared"} for record in picture(root)[name]]
        for root in (calm, store)
    )
    assert ours == theirs


def test_slow_steps_are_not_waited_for_by_the_dozen(spec: RunSpec) -> None:
    train = spec.train.model_copy(update={"steps": 90, "log_every": 20, "eval_every": 40})
    spec = spec.model_copy(update={"train": train})
    whole = list(segments.segments(spec, 0, 40))
    slow = list(segments.segments(spec, 0, 40, lambda: 0.2))
    assert [step for first, end, _ in slow for step in range(first, end)] == list(range(90))
    assert {end for _, end, _ in slow} >= {end for _, end, _ in whole}
    assert max(end - first for first, end, _ in slow) == 5
    very = [(first, end) for first, end, _ in segments.segments(spec, 0, 40, lambda: 7.0)]
    assert max(end - first for first, end in very) == 3, "the first steps of a stage are in one piece"
    assert sum(end - first > 1 for first, end in very) <= 3


BLOCKED = """
import signal, sys, time
from dsabench import shutdown
shutdown.PATIENCE_S = float(sys.argv[1])
with shutdown.on_signals(), shutdown.deferred():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("patience", "signals", "least"), [("30", 2, 0.0), ("0.5", 1, 0.4)])
def test_a_second_signal_and_the_end_of_patience_end_the_process_at_once(
    patience: str, signals: int, least: float
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED, patience], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        began = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT)[:signals]:
            process.send_signal(number)
            time.sleep(0.5)
        assert process.wait(20) == 130
        assert least <= time.monotonic() - began < 15
        assert "stopped at once" in process.stderr.read()


TWICE = """
import time
from dsabench import shutdown
with shutdown.on_signals():
    try:
        {waits}
    except KeyboardInterrupt:
        time.sleep(1)  # what an orderly end takes
        print("orderly", flush=True)
"""


@pytest.mark.parametrize(
    ("numbers", "amid"),
    others_slow(
        [
            ([signal.SIGTERM] * 2, "with shutdown.deferred(): "),
            ([signal.SIGTERM, signal.SIGINT], ""),
            ([signal.SIGTERM] * 2, ""),
            ([signal.SIGTERM, signal.SIGINT], "with shutdown.deferred(): "),
        ],
        0,
        1,
    ),
)
def test_signals_that_come_together_are_one_request(numbers: list[signal.Signals], amid: str) -> None:
    """`timeout` sends its signal to the command, then to the group that the command is in."""
    code = TWICE.format(waits=f"{amid}print('ready', flush=True); time.sleep({0.5 if amid else 60})")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.02)
        assert process.stdout.read() == "orderly\n"


UNNOTICED = """
import os, signal, threading
from dsabench import shutdown
def raised_elsewhere():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
with shutdown.on_signals():
    threading.Timer(0.2, raised_elsewhere).start()
    try:
        os.read(os.pipe()[0], 1)  # as a question that nobody answers
    except KeyboardInterrupt:
        print("orderly")
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals here have no threads")
def test_a_signal_is_noticed_while_the_main_thread_waits_for_the_user() -> None:
    """One that comes just before a system call, or to another thread, doesn't interrupt that call by itself."""
    began = time.monotonic()
    found = subprocess.run([sys.executable, "-c", UNNOTICED], capture_output=True, text=True, timeout=30)
    assert (found.stdout, found.stderr, found.returncode) == ("orderly\n", "", 0)
    assert time.monotonic() - began < shutdown.PATIENCE_S


@pytest.mark.parametrize("stderr", ["a pipe that nobody reads", "closed"])
def test_the_process_ends_where_nobody_can_be_told(stderr: str) -> None:
    """As after a terminal is gone."""
    shut = ["sh", "-c", 'exec "$0" "$@" 2>&-'] if stderr == "closed" else []
    words = [*shut, sys.executable, "-c", BLOCKED, "30"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stderr.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            time.sleep(0.5)
        try:
            assert process.wait(5) == 130
        finally:
            process.kill()


def test_signals_are_handled_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), shutdown.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with shutdown.on_signals():
        time.sleep(0.05)
        assert threading.active_count() > 1
