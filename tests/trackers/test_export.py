"""Reading live runs for a tracker, with one that only remembers; the command and its errors. Needs no tracker."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from shell import Shell
from synthetic import experiment
from tracker_tools import SUMMARY, Live, train

from dsabench.store import read_sweep, write_sweep
from dsabench.trackers import export as exporting
from dsabench.trackers.export import export, open_tracker
from dsabench.trackers.names import TRACKERS
from dsabench.trackers.tracker import Point, Run, TrackerError


class Memory:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.status: dict[str, str] = {}
        self.closed = False
        self.breaks: Callable[[Run], bool] = lambda run: False

    def begin(self, run: Run, points: Sequence[Point]) -> Any:
        if self.breaks(run):
            raise RuntimeError("the tracker is broken")
        self.begun.append(run.run_id)
        self.points[run.run_id] = []
        return Session(self, run.run_id)

    def close(self) -> None:
        self.closed = True


class Session:
    def __init__(self, memory: Memory, run_id: str) -> None:
        self.memory, self.run_id, self.open = memory, run_id, True

    def log(self, points: Sequence[Point]) -> None:
        assert self.open
        self.memory.points[self.run_id] += [(p.step, p.values["train/loss"]) for p in points]

    def end(self, run: Run) -> None:
        self.open = False
        self.memory.status[run.run_id] = run.status

    def leave(self) -> None:
        self.open = False
        self.memory.status[self.run_id] = "left"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[None]], list[float]]:
    """Do a part of something between two looks at the store; gives the times that were waited."""

    def between(doing: Iterator[None]) -> list[float]:
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            next(doing)

        monkeypatch.setattr(exporting.time, "sleep", sleep)
        return waited

    return between


def test_only_what_is_new_is_written_while_a_run_goes_on(live: Live, looks: Any) -> None:
    memory, writer = Memory(), live.open()

    def doing() -> Iterator[None]:
        for step in (1, 2):
            writer.metrics(train(step))
            yield
        yield  # nothing happened
        writer.metrics(train(3, math.nan))
        yield
        writer.finish("done", SUMMARY)
        yield

    waited = looks(doing())
    outcome = export(live.path, ["a"], memory, follow=True)
    assert outcome.written == memory.begun == ["a"]
    assert [step for step, _ in memory.points["a"]] == [1, 2, 3]
    assert memory.status == {"a": "done"}
    assert memory.closed
    assert waited == [exporting.POLL_S] * 5
    assert exporting.POLL_S >= 0.5
    writer.__exit__(None, None, None)


@pytest.mark.parametrize("same_length", [True, False])
def test_records_that_a_resumption_dropped_are_dropped(live: Live, looks: Any, same_length: bool) -> None:
    memory, writers = Memory(), [live.open()]

    def doing() -> Iterator[None]:
        for step in (1, 2, 3):
            writers[0].metrics(train(step))
        yield
        with writers[0]:
            pass
        writers.append(live.open())
        writers[1].rewind(1)
        for step in (2, 3) if same_length else (2,):
            writers[1].metrics(train(step, 9.0))
        yield
        writers[1].finish("done", SUMMARY)
        yield

    looks(doing())
    export(live.path, ["a"], memory, follow=True)
    expected = [(1, 3.875), (2, 9.0), (3, 9.0)] if same_length else [(1, 3.875), (2, 9.0)]
    assert memory.points["a"] == expected
    assert memory.begun == ["a", "a"]
    writers[1].__exit__(None, None, None)


def test_a_run_whose_process_died_has_ended(live: Live, looks: Any) -> None:
    memory, writer = Memory(), live.open()

    def doing() -> Iterator[None]:
        yield
        writer._lock.release()  # as the OS does
        yield

    looks(doing())
    export(live.path, ["a"], memory, follow=True)
    assert memory.status == {"a": "interrupted"}


def test_without_follow_a_live_run_is_written_as_it_is(live: Live, looks: Any) -> None:
    waited = looks(iter([]))
    memory = Memory()
    with live.open() as writer:
        writer.metrics(train(1))
        export(live.path, ["a"], memory)
    assert memory.points == {"a": [(1, 3.875)]}
    assert memory.status == {"a": "left"}
    assert waited == []


def test_what_a_tracker_raises_is_told_and_the_others_go_on(live: Live) -> None:
    memory = Memory()
    memory.breaks = lambda run: run.run_id == "a"
    live.add("a")
    live.add("b")
    before = {path: path.read_bytes() for path in live.path.rglob("*") if path.is_file()}
    outcome = export(live.path, ["a", "b"], memory)
    assert outcome.failed == {"a": "RuntimeError: the tracker is broken"}
    assert outcome.written == ["b"]
    assert {path: path.read_bytes() for path in live.path.rglob("*") if path.is_file()} == before


def test_everything_is_closed_when_it_is_interrupted(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting.time, "sleep", stop)
    memory = Memory()
    with live.open(), pytest.raises(KeyboardInterrupt):
        export(live.path, ["a"], memory, follow=True)
    assert memory.status == {"a": "left"}
    assert memory.closed


# The command.


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """What the command writes to, whatever is installed."""
    memory = Memory()
    monkeypatch.setattr(exporting, "open_tracker", lambda name, out, store: memory)
    monkeypatch.setattr(Session, "log", lambda self, points: None)
    return memory


def test_runs_are_chosen_as_in_other_commands(shell: Shell, memory: Memory) -> None:
    store = Path("runs")
    old = experiment(store, lengths=(16,), seeds=(1,), sweep="old-00000000")
    new = experiment(store, lengths=(32,), seeds=(1, 2), sweep="new-00000000", minutes=5)
    for words, expected in {
        (): new,
        ("--sweep", "old"): old,
        ("--all",): [*old, *new],
        ("--where", "seed == 2"): new[2:],
        (old[0],): old[:1],
    }.items():
        memory.begun.clear()
        code, said, errors = shell("export", "--to", "tensorboard", *words)
        assert code == 0, errors
        assert sorted(memory.begun) == sorted(expected)
        assert "Written: results/tensorboard" in said


def test_following_a_sweep_waits_for_runs_that_have_not_begun(shell: Shell, memory: Memory, looks: Any) -> None:
    store = Path("runs")
    ids = experiment(store, lengths=(16,), seeds=(1,), sweep="new-00000000")
    record = read_sweep(store, "new-00000000")
    write_sweep(store, record.model_copy(update={"run_ids": [*ids, "late"]}))

    def doing() -> Iterator[None]:
        yield
        Live(store).add("late")
        yield

    waited = looks(doing())
    code, _, errors = shell("export", "--to", "mlflow", "--follow")
    assert code == 0, errors
    assert memory.begun == [*ids, "late"]
    assert len(waited) == 2


def test_a_failure_is_exit_code_1(shell: Shell, memory: Memory) -> None:
    ids = experiment(Path("runs"), lengths=(16,), seeds=(1,))
    memory.breaks = lambda run: run.run_id == ids[0]
    code, said, errors = shell("export", "--to", "wandb", "--json")
    assert code == 1
    assert f"error: {ids[0]}: RuntimeError: the tracker is broken" in errors
    assert ids[1] in said


def test_usage_errors_say_what_would_be_right(shell: Shell, memory: Memory) -> None:
    ids = experiment(Path("runs"), lengths=(16,), seeds=(1,))
    assert shell("export", "--to", "tensorboard", ids[0], "--all")[0] == 2
    assert shell("export", ids[0])[0] == 2


def test_a_misspelt_tracker_is_told_before_a_store_is_looked_for(shell: Shell) -> None:
    code, _, errors = shell("export", "--to", "tensorbored")
    assert code == 2
    assert errors == "error: --to tensorbored: no such target; there are: tensorboard, wandb, mlflow, transformers\n"
    code, output, errors = shell("export")
    assert (code, output) == (2, "")
    assert errors == "error: --to is missing; give one of: tensorboard, wandb, mlflow, transformers\n"


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_tracker_that_is_not_installed_says_how_to_install_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    last = TRACKERS[kind].packages[-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == last else real("json"))
    with pytest.raises(TrackerError) as raised:
        open_tracker(kind, tmp_path / "out", tmp_path / "runs")
    assert "pip install 'dsabench[trackers]'" in str(raised.value).splitlines()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    store = tmp_path / "runs"
    (tmp_path / "file").touch()
    for name, out, why in (
        ("tensorbored", tmp_path / "out", "tensorboard, wandb, mlflow"),
        ("wandb", store, "inside the store"),
        ("wandb", store / "x", "inside the store"),
        ("wandb", tmp_path / "file", "name a folder"),
    ):
        with pytest.raises(TrackerError, match=why):
            open_tracker(name, out, store)
