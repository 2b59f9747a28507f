"""What each tracker owes, read back by its own reader. Skipped where it is not installed."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tracker_readers import read
from tracker_tools import SUMMARY, Live, train

from dsabench.store import RunRecord, read_run
from dsabench.trackers import export as exporting
from dsabench.trackers.content import points_of, run_of
from dsabench.trackers.export import export
from dsabench.trackers.tracker import Tracker

# Their imports, and what they call, warn of many things that are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

Open = Callable[[], Tracker]


def everything_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_number_arrives_by_step_and_time_with_settings_summary_and_status(
    live: Live, tracker: Open, kind: str, out: Path
) -> None:
    with live.open() as writer:
        writer.metrics({"kind": "eval", "step": 0, "val_loss": 7.5, "stage": "dense", "kl": None, "by_position": [1.0]})
        writer.metrics({**train(1), "tokens": 2**40, "shared": True})
        writer.metrics({**train(2, math.nan), "grad_norm": math.inf})
        writer.metrics({"kind": "eval", "step": 2, "seconds": 1.5, "val_loss": 3.25})
        writer.finish("done", SUMMARY | {"steps": 2})
    live.add("b", status="failed")
    before = everything_below(live.path)
    outcome = export(live.path, ["a", "b"], tracker())
    assert (outcome.written, outcome.failed) == (["a", "b"], {})
    assert everything_below(live.path) == before, "the store was written to"
    seen = read(kind, out)
    assert set(seen) == {"a", "b"}
    a = seen["a"]
    start = read_run(live.path, "a").created.timestamp()
    found = {name: [step for step, _, _ in points] for name, points in a.metrics.items() if "summary/" not in name}
    assert found == {
        "eval/val_loss": [0, 2],
        "eval/seconds": [2],
        "train/loss": [1, 2],
        "train/seconds": [1, 2],
        "train/tokens": [1],
        "train/shared": [1],
        "train/grad_norm": [2],
    }
    assert [time_ for _, time_, _ in a.metrics["eval/val_loss"]] == pytest.approx([start, start + 1.5], abs=2e-3)
    assert [value for _, _, value in a.metrics["eval/val_loss"]] == [7.5, 3.25]
    assert a.metrics["train/tokens"][0][2] == 2**40
    assert math.isnan(a.metrics["train/loss"][1][2])
    assert a.metrics["train/grad_norm"][0][2] > 1e308
    assert a.metrics["summary/val_loss"][0][2] == 3.25
    assert a.parameters["train.learning_rate"] == "0.001"
    assert a.parameters["attention.kind"] == "dsa"
    assert a.parameters["attention.top_k"] in ("None", "null")
    assert float(a.parameters["length"]) == 64
    assert (a.status, seen["b"].status) == ("done", "failed")
    assert "it broke" in seen["b"].texts
    assert "LEAK" not in a.texts


def test_exporting_again_changes_nothing(live: Live, tracker: Open, kind: str, out: Path) -> None:
    live.add("a")
    live.add("a-b")  # an id that begins as another does
    export(live.path, ["a", "a-b"], tracker())
    first = read(kind, out)
    again = export(live.path, ["a-b", "a"], tracker())
    assert sorted(again.written + again.same) == ["a", "a-b"]
    assert (again.same != []) == (kind == "mlflow")
    assert read(kind, out) == first


def test_a_run_that_went_on_replaces_what_was_written_of_it(live: Live, tracker: Open, kind: str, out: Path) -> None:
    live.add("a", status="interrupted", steps=5, summary={})
    export(live.path, ["a"], tracker())
    assert read(kind, out)["a"].status == "interrupted"
    with live.open("a") as writer:
        writer.rewind(2)
        writer.metrics(train(3, 9.0))
        writer.finish("done", {**SUMMARY, "leak": True})
    export(live.path, ["a"], tracker())
    (seen,) = read(kind, out).values()
    assert (seen.name, seen.status) == ("LEAK-a", "done")
    assert "LEAK" in seen.texts or "LEAK" in seen.parameters
    assert [(step, value) for step, _, value in seen.metrics["train/loss"]] == [(1, 3.875), (2, 3.75), (3, 9.0)]


def test_a_run_that_began_anew_replaces_what_was_written_of_it(live: Live, tracker: Open, kind: str, out: Path) -> None:
    live.add("a")
    path = live.path / "a" / "run.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "created": "2020-01-01T00:00:00+00:00"}))
    export(live.path, ["a"], tracker())
    path.write_text(json.dumps(record))
    export(live.path, ["a"], tracker())
    (seen,) = read(kind, out).values()
    start = datetime.fromisoformat(record["created"]).timestamp()
    assert [time_ - start for _, time_, _ in seen.metrics["train/loss"]] == pytest.approx([0.5, 1.0, 1.5], abs=2e-3)


def test_a_live_run_is_followed_through_a_resumption_to_its_end(
    live: Live, tracker: Open, kind: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = live.open("a")
    writer.metrics(train(1))

    def steps() -> Any:
        nonlocal writer
        writer.metrics(train(2))
        writer.metrics(train(3))
        yield
        with writer:  # a resumption between two looks
            writer._metrics.close()
        writer = live.open("a")
        writer.rewind(2)
        writer.metrics(train(3, 9.0))
        yield
        writer.metrics(train(4))
        writer.finish("done", SUMMARY)
        live.add("b")  # which was waited for
        yield

    going = steps()
    monkeypatch.setattr(exporting.time, "sleep", lambda seconds: next(going))
    outcome = export(live.path, ["a", "b"], tracker(), follow=True)
    assert outcome.failed == {}
    assert sorted(outcome.written) == ["a", "b"]
    seen = read(kind, out)
    assert [(s, v) for s, _, v in seen["a"].metrics["train/loss"]] == [(1, 3.875), (2, 3.75), (3, 9.0), (4, 3.5)]
    assert (seen["a"].status, seen["b"].status) == ("done", "done")
    writer.__exit__(None, None, None)


EVIL = "../../../evil\x1b[31m\n' OR 1=1 --"


def test_names_of_a_hostile_store_stay_below_the_folder(live: Live, tracker: Open, kind: str, out: Path) -> None:
    spec = {"attention": {"kind": EVIL}, EVIL: {EVIL: EVIL}, "/etc/passwd": "..", "..": ".", "x" * 5000: "y" * 50_000}
    with live.open("a", spec=spec, environment={EVIL: EVIL, "": ""}, sweep=EVIL) as writer:
        writer.metrics({"kind": EVIL, "step": 0, EVIL: 1.0, "/abs": 2.0, "..": 10**400, "\ud800": 3.0})
        writer.metrics({"kind": "../x", "step": 2**53, "..": 1.0, "a b": 1.0, "a_b": 2.0})
        writer.finish("failed", {EVIL: 1.0}, error=EVIL)
    (live.path / "b").symlink_to(out.parent)
    outcome = export(live.path, ["a", "../out", "b", "nowhere"], tracker())
    assert outcome.written == ["a"]
    assert set(outcome.failed) == {"../out", "b", "nowhere"}
    (seen,) = read(kind, out).values()
    values = [value for name, points in seen.metrics.items() if "summary/" not in name for *_, value in points]
    assert sorted(values) == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    top = live.path.parent
    assert {path.name for path in top.iterdir()} == {"runs", "somewhere"}
    assert {path.name for path in (top / "somewhere").iterdir()} == {"out"}
    assert not [path for path in out.rglob("*") if "evil" in path.name or ".." in path.name]


def test_a_damaged_run_does_not_keep_the_others(live: Live, tracker: Open, kind: str, out: Path) -> None:
    for name in ("a", "b", "c"):
        live.add(name)
    (live.path / "a" / "metrics.jsonl").write_text("nothing\n")
    (live.path / "b" / "run.json").write_text("{")
    outcome = export(live.path, ["a", "b", "c"], tracker())
    assert outcome.written == ["c"]
    assert "line 1" in outcome.failed["a"]
    assert set(read(kind, out)) == {"c"}


def test_a_link_in_the_place_of_a_run_is_not_followed(live: Live, tracker: Open, kind: str, out: Path) -> None:
    live.add("a")
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir(parents=True)
    (elsewhere / "events.out.tfevents.mine").write_text("precious")
    opened = tracker()
    (out / "a").symlink_to(elsewhere)
    (out / "wandb").mkdir(exist_ok=True)
    (out / "wandb" / "offline-run-20260101_000000-a").symlink_to(elsewhere)
    export(live.path, ["a"], opened)
    assert [(path.name, path.read_text()) for path in elsewhere.iterdir()] == [("events.out.tfevents.mine", "precious")]


def test_neither_network_nor_settings_of_the_user_count(live: Live, kind: str, out: Path, tmp_path: Path) -> None:
    """A server that all their settings name hears nothing."""
    live.add("a")
    heard: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                heard.append(connection.recv(100))
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text(f"[default]\nmode = online\nbase_url = {url}\n")
        environment = {
            **os.environ,
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"), url),
            "NO_PROXY": "",
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_DIR": str(tmp_path / "elsewhere"),
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_REGISTRY_URI": url,
        }
        code = "from dsabench.cli.app import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "export", "a", "--to", kind, "--store", str(live.path), "--out", str(out)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        time.sleep(0.5)
    assert done.returncode == 0, done.stderr
    assert heard == []
    assert set(read(kind, out)) == {"a"}
    assert not (tmp_path / "elsewhere").exists()
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".log")
    assert socket.gethostname().encode() not in written or len(socket.gethostname()) < 4


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent like this")
def test_ctrl_c_ends_following_with_130(live: Live, kind: str, out: Path) -> None:
    with live.open("a") as writer:
        writer.metrics(train(1))
        code = "from dsabench.cli.app import main; main()"
        line = [sys.executable, "-c", code, "export", "a", "--follow", "--to", kind]
        with subprocess.Popen(
            [*line, "--store", str(live.path), "--out", str(out)], stderr=subprocess.PIPE, text=True
        ) as following:
            patience = time.monotonic() + 90
            while time.monotonic() < patience and not begun(kind, out):
                time.sleep(0.1)
            time.sleep(1.5)
            spent = cpu_seconds(following.pid)
            time.sleep(2)
            spent = cpu_seconds(following.pid) - spent
            following.send_signal(signal.SIGINT)
            _, said = following.communicate(timeout=30)
        assert following.returncode == 130, said
        assert "Traceback" not in said
        assert spent < 1, "it does not wait, it works"
    assert read_run(live.path, "a").status == "interrupted"
    export(live.path, ["a"], exporting.open_tracker(kind, out, live.path))
    assert [s for s, _, _ in read(kind, out)["a"].metrics["train/loss"]] == [1]


def begun(kind: str, out: Path) -> bool:
    if kind == "mlflow":
        return "a" in read(kind, out)
    return any(
        path.is_file() and path.stat().st_size for path in out.rglob("*events*" if kind == "tensorboard" else "*.wandb")
    )


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_long_run_arrives_whole(live: Live, tracker: Open, kind: str, out: Path) -> None:
    """More records than fit into a batch or a block."""
    live.add("a", steps=2500)
    export(live.path, ["a"], tracker())
    points = read(kind, out)["a"].metrics["train/loss"]
    assert [(step, value) for step, _, value in points] == [(s, 4.0 - s / 8) for s in range(1, 2501)]


def test_what_a_record_becomes_is_told_apart() -> None:
    record = RunRecord(run_id="a", status="done", spec={}, created=datetime(2026, 1, 1, tzinfo=UTC))
    run = run_of(record)
    records = json.loads('[{"kind": "a b", "step": 1, "x": 1}, {"kind": "a_b", "step": 1, "x": 2}]')
    first, second = points_of(records, run.started)
    assert first.values.keys().isdisjoint(second.values)
