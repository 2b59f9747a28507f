"""What a SIGKILL of a command leaves: no process for longer than a second or so, and no temporary folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from cases import others_slow
from hostile import PLUGIN, tiny

from dsabench import load_spec, train
from dsabench.store import read_run
from dsabench.sweeps import plan
from dsabench.sweeps.workers.parent import GRACE_S

SLEEPS = """
import os, sys, time
class Mine(Mine):
    def forward(self, x, context):
        if os.environ.get("SLEEPERS") == "all" or (os.environ.get("SLEEPERS") and sys.argv[0] == "-c"):
            Path(os.environ["PIDS"], str(os.getpid())).touch()
            time.sleep(60)
        return super().forward(x, context)
register(Mine)
"""
"""An attention whose step never ends: of the processes that a command starts, or of all."""

SLACK_S = 2.0
"""Of a busy machine."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the attention, and with places for temporary files and for the ids of processes that sleep."""
    for name in ("tmp", "pids"):
        (tmp_path / name).mkdir()
    # A registered class cannot be replaced, so that it is registered once only, at the end.
    (tmp_path / "mine.py").write_text(PLUGIN.replace("CANARY", "'canary'").replace("@register\n", "") + SLEEPS)
    (tmp_path / "command.py").write_text("from dsabench.cli.app import main\n\nmain()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    return tmp_path


def config(place: Path, corpus: Path, **fields: object) -> Path:
    base = dict[str, object]()
    for path, value in tiny(corpus, **{"plugins": ["mine.py"], "attention.kind": "mine", **fields}).items():
        *parents, name = path.split(".")
        inner = base
        for parent in parents:
            inner = inner.setdefault(parent, {})  # type: ignore[assignment]
        inner[name] = value
    path = place / "c.yaml"
    path.write_text(yaml.safe_dump({"base": base, "axes": {"seed": [1, 2]}}))
    return path


class Killed:
    """A command that is killed once `until` holds."""

    def __init__(self, *words: str, sleepers: str, until: Callable[[int], bool]) -> None:
        environment = os.environ | {"SLEEPERS": sleepers, "OMP_NUM_THREADS": "1"}
        with Path("said").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "command.py", *words], env=environment, stdout=said, stderr=said
            )
        try:
            end = time.monotonic() + 60
            while not until(process.pid):
                assert process.poll() is None, Path("said").read_text()
                assert time.monotonic() < end, Path("said").read_text()
                time.sleep(0.01)
            self.children = children_of(process.pid)
        finally:
            process.kill()
            process.wait()
        self.at = time.monotonic()

    def seconds(self) -> float:
        """Until the last process that it started was gone, and its temporary folders; at most 20."""
        while any(is_there(pid) for pid in self.children) and time.monotonic() - self.at < 20:
            time.sleep(0.02)
        took = time.monotonic() - self.at
        for pid in self.children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return took


def children_of(pid: int) -> list[int]:
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, table.splitlines()) if int(parent) == pid]


def is_there(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def asleep(n: int) -> Callable[[int], bool]:
    return lambda pid: len(list(Path(os.environ["PIDS"]).iterdir())) >= n


def python_started(n: int) -> Callable[[int], bool]:
    """The command has started n processes, which load PyTorch for seconds."""
    return lambda pid: len(children_of(pid)) >= n


COMMANDS = {
    "workers": ["sweep", "--config", "c.yaml", "--devices", "cpu,cpu", "--yes"],
    "ranks": ["train", "--config", "c.yaml", "--data-parallel", "2"],
}


@pytest.mark.parametrize("moment", others_slow(["amid a step", "as they start"], 0))
@pytest.mark.parametrize("kind", COMMANDS)
def test_processes_of_a_killed_command_end_within_a_second_and_leave_nothing(
    place: Path, corpus: Path, kind: str, moment: str
) -> None:
    config(place, corpus)
    # Of ranks the first alone evaluates, and the other one waits for it.
    until = asleep(2 if kind == "workers" else 1) if moment == "amid a step" else python_started(2)
    killed = Killed(*COMMANDS[kind], sleepers="children", until=until)
    assert len(killed.children) >= 2
    assert killed.seconds() < GRACE_S + SLACK_S
    assert list((place / "tmp").iterdir()) == []


@pytest.mark.slow
def test_an_orphan_between_steps_stores_a_checkpoint(place: Path, corpus: Path) -> None:
    """It is asked to stop, as its parent would have asked it; only who does not come to it in time ends at once."""
    path = config(
        place,
        corpus,
        **{"train.steps": 100_000, "train.eval_every": 50_000, "train.log_every": 10, "attention.kind": "dense"},
    )
    spec = load_spec(str(path))
    run_id = plan.plan([spec], "runs")[0].run_id
    far = Path("runs", run_id, "metrics.jsonl")
    killed = Killed(
        *COMMANDS["workers"], sleepers="", until=lambda pid: far.exists() and b'"train"' in far.read_bytes()
    )
    assert killed.seconds() < GRACE_S + SLACK_S
    assert read_run("runs", run_id).status == "interrupted"
    assert (far.parent / "checkpoint" / "state.json").exists()


@pytest.fixture
def stored(place: Path, corpus: Path) -> str:
    return train(load_spec(str(config(place, corpus))), "runs").run_id


def test_the_folder_of_a_killed_reproduction_goes_with_the_next_command(stored: str, place: Path) -> None:
    Killed("reproduce", stored, sleepers="all", until=asleep(1))
    assert len(list((place / "tmp").iterdir())) == 1
    subprocess.run([sys.executable, "command.py", "train", "--config", "c.yaml"], check=True, capture_output=True)
    assert list((place / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_killed_bench_leaves_nothing(place: Path) -> None:
    words = [
        "bench",
        "--device",
        "cpu",
        "--lengths",
        "512",
        "--heads",
        "4",
        "--head-dim",
        "16",
        "--top-k",
        "64",
        "--out",
        "out",
    ]
    Killed(*words, sleepers="", until=lambda pid: Path("out", "bench.json").exists())
    assert list((place / "tmp").iterdir()) == []
    assert [path.name for path in Path("out").iterdir()] == ["bench.json"]
