"""`dsabench runs`: what it shows, what it removes, and one message for each mistake."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from shell import Shell, loaded
from synthetic import experiment, finished

from dsabench.spec.run import validate
from dsabench.store import RunRecord, RunWriter, load_metrics, load_runs, read_run

HOSTILE = "\x1b[31mred\x1b[0m \x9b2J \u202e [bold]markup[/bold]"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one sweep of 4 runs, and single ones: failed, interrupted, leaking, unreadable."""
    store = tmp_path_factory.mktemp("filled") / "runs"
    experiment(store, lengths=(64,), seeds=(1, 2), evaluations=1)

    def one(seed: int, **changes: Any) -> str:
        spec = validate({"length": 128, "seed": seed, "attention": {"kind": "dsa"}})
        return finished(store, spec, 4.0, evaluations=1, minutes=seed, **changes)

    one(3, status="failed", error="\nthe loss is nan at step 40\nlower the learning rate")
    one(4, status="interrupted")
    one(5, leak=True)
    (store / one(6) / "run.json").write_text("{")
    return store


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "runs")
    return tmp_path / "runs"


def lines_of(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line and not line.startswith(" ")]


def test_a_table_of_all_runs_the_newest_first(shell: Shell, store: Path) -> None:
    code, out, err = shell("runs")
    assert (code, err) == (0, "note: damaged runs are never judged; `dsabench runs verify` says what to do\n")
    heading, *rows, counts = out.splitlines()
    assert heading.split() == [
        "id",
        "status",
        "attention",
        "length",
        "seed",
        "steps",
        "val",
        "loss",
        "ms/step",
        "updated",
        "(UTC)",
    ]
    assert "8 runs: 5 done, " in counts and "1 unreadable" in counts
    seeds = [row.split()[4] for row in rows if re.match(r"ds\w+-L128", row) and "LEAK" not in row and "{" not in row]
    assert seeds[:2] == ["4", "3"], "the newest first; what cannot be read has no time and comes last"
    assert max(map(len, out.splitlines()[:1])) <= 100
    assert shell("runs", "list") == shell("runs", "list", "--all") == (0, out, err)


def test_what_is_wrong_with_a_run_is_seen_whatever_the_columns(shell: Shell, store: Path) -> None:
    for columns in ([], ["--columns", "run_id", "seed"]):
        _, out, _ = shell("runs", *columns)
        rows = {
            row.split(" ")[0].split("-")[2]: i for i, row in enumerate(out.splitlines()) if row.startswith("dsa-L128")
        }
        below = {seed: out.splitlines()[i + 1].strip() for seed, i in rows.items()}
        assert below["s3"].endswith("the loss is nan at step 40")
        assert below["s5"] == "LEAK: this attention sees later tokens; its loss means nothing"
        assert "run.json: damaged" in below["s6"]
        if columns:
            assert below["s3"].startswith("failed: ")
        else:
            assert "done LEAK" in out
            assert all(f" {status} " in out for status in ("failed", "interrupted", "unreadable"))


def test_where_sweep_sort_columns_and_limit(shell: Shell, store: Path) -> None:
    _, out, _ = shell("runs", "--where", "length == 64 and attention.top_k_ratio == 0.5")
    assert [row[0][:9] for row in lines_of(out)[1:-1]] == ["dsa-L64-s"] * 2
    _, out, _ = shell("runs", "--sweep", "synth", "--sort", "-seed", "--columns", "id", "seed")
    assert [row[1] for row in lines_of(out)] == ["seed", "2", "2", "1", "1", "runs:"]
    assert shell("runs", "--sweep", "synth", "--sort", "seed", "--reverse", "--columns", "id,seed")[1] == out
    _, out, _ = shell(
        "runs", "--sort", "val loss", "--limit", "2", "--columns", "id", "val_loss", "train.learning_rate"
    )
    assert lines_of(out)[1][1:] == ["4.0000", "0.001"]
    assert lines_of(out)[2][1] > "4.0000"
    assert out.endswith("6 of them are not shown (--limit 2)\n")
    for order in ("val_loss", "-val_loss"):
        _, out, _ = shell("runs", "--sort", order, "--columns", "id", "val_loss")
        assert [row[1] for row in lines_of(out)[-4:-1]] == ["-"] * 3, "missing values come last in either order"


def test_json_is_one_document_of_the_whole_index(shell: Shell, store: Path) -> None:
    code, out, err = shell("runs", "--json")
    document = json.loads(out)
    frame = load_runs(store)
    assert (code, err) == (0, "")
    assert {run["run_id"] for run in document} == set(frame["run_id"])
    assert set(document[0]) == set(frame.columns)
    failed = next(run for run in document if run["status"] == "failed")
    assert failed["val_loss"] is None and failed["updated"] == "2026-01-01T00:03:00+00:00"
    code, out, err = shell("runs", "--json", "--limit", "1", "--columns", "seed", "leak")
    assert json.loads(out) == [{"seed": 5, "leak": True}]
    assert err == "note: 7 more runs are not in the document (--limit 1)\n"
    assert json.loads(shell("runs", "--json", "--where", "seed == 99")[1]) == []


def test_an_empty_list_says_why(shell: Shell, store: Path, tmp_path: Path) -> None:
    code, out, err = shell("runs", "--where", "seed == 99")
    assert (code, err) == (0, "")
    assert out == "No run: --where 'seed == 99' keeps none of the 8 (all runs of runs).\n"
    (tmp_path / "empty").mkdir()
    assert shell("runs", "--store", "empty")[1] == "No runs: all runs of empty.\n"
    assert json.loads(shell("runs", "--store", "empty", "--json")[1]) == []


def test_show_tells_everything_and_how_to_train_it_again(shell: Shell, store: Path) -> None:
    name = next(p.name for p in store.glob("dsa-L64-s1-*"))
    code, short, err = shell("runs", "show", "dsa-L64-s1")
    assert (code, err) == (0, "")
    assert len(short.splitlines()) <= 30 and "attention.top_k_ratio" not in short
    assert f"All of it: dsabench runs show {name} --all" in short
    code, out, err = shell("runs", "show", "dsa-L64-s1", "--all")
    assert (code, err) == (0, "")
    for text in (short, out):
        assert text.startswith(f"{name}: done\n")
        assert "synthetic-00000000" in text and "NVIDIA H100" in text and "done already" in text
        assert "\n  dsabench train --attention dsa --length 64 --seed 1\n" in text
    for part in (
        "sweep     synthetic-00000000", "val_loss", "attention.top_k_ratio", "NVIDIA H100", "corpus     c0",
        "last eval record", "64 values", "metrics.jsonl", "done already",
    ):  # fmt: skip
        assert part in out
    assert out.index("fields that differ") < out.index("fields at their defaults")
    command = out.partition("train it again")[2].partition("\n")[2]
    assert shlex.split(command.replace("\\\n", " ")) == [
        "dsabench", "train", "--attention", "dsa", "--length", "64", "--seed", "1",
    ]  # fmt: skip
    code, out, _ = shell("runs", "show", "--json", name)
    document = json.loads(out)
    assert document["spec"] == read_run(store, name).spec
    assert document["command"] == "dsabench train --attention dsa --length 64 --seed 1"
    assert document["non_default"] == {"length": 64, "seed": 1}
    assert document["last_metrics"]["eval"]["step"] == 1000
    assert len(document["last_metrics"]["eval"]["loss_by_position"]) == 64
    assert document["files"].keys() == {"metrics.jsonl", "run.json"}
    failed = shell("runs", "show", "dsa-L128-s3", "--all")[1]
    assert "error\n  \n  the loss is nan at step 40\n  lower the learning rate\n" in failed
    assert ": failed\n  the loss is nan at step 40\n  lower the" in shell("runs", "show", "dsa-L128-s3")[1]
    assert "dsa-L128-s5" in (leak := shell("runs", "show", "dsa-L128-s5")[1]) and ": done LEAK: " in leak


def test_show_of_a_run_with_damaged_metrics_shows_the_rest(shell: Shell, store: Path) -> None:
    name = next(p.name for p in store.glob("dense-L64-s1-*"))
    (store / name / "metrics.jsonl").write_text("rubbish\n")
    code, out, _ = shell("runs", "show", name, "--store", str(store), "--all")
    assert code == 0
    assert "line 1: damaged" in out
    assert f"--store {store}" in out


def test_rm_needs_a_yes_and_removes_what_it_says(shell: Shell, store: Path) -> None:
    load_runs(store)
    before = sorted(store.rglob("*"))
    code, out, err = shell("runs", "rm", "--where", 'status == "failed"')
    assert (code, out) == (2, "")
    assert err.startswith("error: no terminal to ask on: --yes removes 1 run without asking (dsa-L128-s3-")
    assert sorted(store.rglob("*")) == before
    code, out, err = shell("runs", "rm", "--where", 'status == "failed"', "--yes")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Removed: dsa-L128-s3-\w{8}\n", out)
    code, out, _ = shell("runs", "rm", "dsa-L64-s1", "dense-L64-s1", "dsa-L64-s1", "-y")
    assert out.count("Removed: ") == 2
    assert "Sweep synthetic-00000000 still names 2 of them: `dsabench compare` will call them missing" in out
    assert len(pd.read_parquet(store / "index.parquet")) == 5
    code, out, _ = shell("runs", "rm", "--sweep", "synth", "--yes")
    assert (code, out.count("Removed: ")) == (0, 2)
    code, out, _ = shell("runs", "rm", "dsa-L128-s6", "--yes")  # unreadable
    assert (code, out.count("Removed: ")) == (0, 1)
    code, out, _ = shell("runs", "rm", "--where", "seed == 99", "--yes")
    assert (code, out) == (
        0,
        "No run: --where 'seed == 99' keeps none of the 2 (all runs of runs). Nothing was removed.\n",
    )


def test_rm_refuses_a_run_that_is_being_written(shell: Shell, store: Path) -> None:
    with RunWriter.open(store, "dsa-busy", spec={}, fingerprint={}, environment={}):
        code, out, err = shell("runs", "rm", "dsa-L64-s1", "dsa-busy", "--yes")
        assert (code, out) == (2, "")
        assert "run dsa-busy: another process is writing it; nothing was removed" in err
        assert len(list(store.glob("dsa-L64-s1-*"))) == 1
        assert "another process is writing it" in shell("runs", "rm", "dsa-busy")[2], "before anything is asked"


def test_export_writes_the_index_or_the_metrics(shell: Shell, store: Path, tmp_path: Path) -> None:
    code, out, err = shell("runs", "export", "all.parquet")
    assert (code, out, err) == (0, "Written: all.parquet (8 rows of 8 runs)\n", "")
    pd.testing.assert_frame_equal(pd.read_parquet("all.parquet"), load_runs(store))
    code, out, _ = shell("runs", "export", "--metrics", "--sweep", "synth", "--where", "seed == 1", "m.csv")
    assert out == "Written: m.csv (6 records of 2 runs)\n"
    written = pd.read_csv("m.csv")
    wanted = load_metrics(store, sorted(p.name for p in store.glob("*-L64-s1-*")))
    assert list(written) == list(wanted)
    assert written["val_loss"].dropna().tolist() == wanted["val_loss"].dropna().tolist()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no store": (["--store", "nowhere"], "nowhere: no run store there; make runs first (dsabench sweep)"),
    "a file": (["--store", "file"], "a file, not a run store"),
    "newer store": (["--store", "newer"], "newer dsabench"),
    "unknown order": (["--sort", "val_los"], "--sort val_los: no such column in the index; did you mean"),
    "unknown column": (["--columns", "id", "train.stepz"], "--columns train.stepz: no such column in the index"),
    "no columns": (["--columns"], "'--columns' requires a value"),
    "limit 0": (["--limit", "0"], "--limit"),
    "unknown sweep": (["--sweep", "x"], "--sweep x: no such sweep in runs; there are: synthetic-00000000"),
    "sweep and all": (["--sweep", "s", "--all"], "--sweep and --all exclude each other"),
    "query": (["--where", "lenth == 3"], "no column lenth; did you mean length?"),
    "unquoted text": (["--where", "status == done"], 'text is written in quotes: "done"'),
    "hostile query": (["--where", "val_loss.map(print)"], "is not accepted"),
    "unknown command": (["lst"], "lst"),
    "unknown run": (["show", "dsa-L512"], "no run starts with that; there are: dense-L64-s1-"),
    "ambiguous run": (["show", "dsa"], "6 runs start with that: dsa-L128-s3-"),
    "no run": (["show", ""], "no run starts with that"),
    "unreadable run": (["show", "dsa-L128-s6"], "run.json: damaged"),
    "show what": (["show"], "RUN"),
    "rm what": (["rm", "--yes"], "name the runs (RUN ...), or choose them by --where or --sweep"),
    "rm both": (["rm", "dsa-L128-s3", "--where", "leak"], "name the runs (RUN ...), or choose them by --where"),
    "rm unknown": (["rm", "dsa-L128-s3", "x", "--yes"], "run 'x' in runs: no run starts with that"),
    "rm outside": (["rm", "../runs", "--yes"], "no run starts with that"),
    "rm ambiguous": (["rm", "dsa", "--yes"], "6 runs start with that"),
    "export what": (["export"], "FILE"),
    "export suffix": (["export", "t.json"], "t.json: the name says the format, and must end in .parquet or .csv"),
    "export nowhere": (["export", "no/t.csv"], "there is no folder no"),
    "export nothing": (["export", "t.csv", "--where", "seed == 99"], "nothing to export: of 8 runs (all runs of runs)"),
    "export into the store": (["export", "runs/index.parquet"], "inside the store"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_exit_2_and_changes_nothing(name: str, shell: Shell, store: Path) -> None:
    Path("file").write_text("")
    Path("newer").mkdir()
    Path("newer/store.json").write_text('{"schema_version": 99}')
    load_runs(store)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    words, message = MISTAKES[name]
    code, out, err = shell("runs", *words)
    assert code == 2, err
    assert message in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def hostile(store: Path) -> None:
    finished(store, validate({"length": 64, "attention": {"kind": "dense"}}), 4.0, evaluations=1)
    path = next(store.glob("dense-*")) / "run.json"
    record = RunRecord.model_validate_json(path.read_bytes())
    changes = {
        "status": "failed",
        "error": f"first {HOSTILE}\nsecond {HOSTILE}",
        "sweep": HOSTILE,
        "version": HOSTILE,
        "spec": {**record.spec, HOSTILE: HOSTILE, "data": {"source": HOSTILE}, "plugins": [HOSTILE]},
        "environment": {HOSTILE: HOSTILE},
        "fingerprint": {"corpus": HOSTILE},
        "summary": {**record.summary, HOSTILE: HOSTILE},
    }
    path.write_bytes(record.model_copy(update=changes).to_json())
    (path.parent / "metrics.jsonl").write_text(json.dumps({"kind": HOSTILE, "step": 1, HOSTILE: HOSTILE}) + "\n")
    (path.parent / "\x1b[31m.txt").touch()
    unreadable = store / "unreadable"
    shutil.copytree(path.parent, unreadable)
    (unreadable / "metrics.jsonl").write_text(HOSTILE)
    (store / "sweeps").mkdir(exist_ok=True)
    (store / "sweeps/\x1b[31m.json").write_text("{")


def test_nothing_from_a_file_commands_the_terminal(shell: Shell, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    hostile(store)
    name = next(p.name for p in store.glob("dense-*"))
    for words in (
        ["runs"], ["runs", "--columns", *load_runs(store).columns], ["runs", "--json"], ["runs", "show", "dense"],
        ["runs", "show", "dense", "--json"],
        ["runs", "show", "dense", "--all"], ["runs", "show", "unreadable"], ["runs", "--sweep", "\x1b[31m"],
        ["runs", "--where", "\x1b[31m == 1"], ["runs", "--where", "run_id == '\x1b[31m'"], ["runs", "show", "\x1b[31m"],
        ["runs", "--sort", "\x1b[31m"], ["runs", "export", "\x1b[31m.csv"], ["runs", "rm", "unreadable", "--yes"],
    ):  # fmt: skip
        code, out, err = shell(*words)
        assert code in (0, 2)
        seen = out + err
        assert not [c for c in seen if not c.isprintable() and c != "\n"], (words, seen)
        if "--json" in words:
            document = json.loads(out)
            texts = (document[0] if isinstance(document, list) else document["spec"]).values()
            assert HOSTILE in texts, "the document says it all the same"
        elif words == ["runs"]:
            assert re.search(f"{name} +failed", out) and "first \\x1b[31mred" in out and "[bold]markup[/bold]" in out


def in_terminal(command: list[str], answer: str, folder: Path, columns: int = 80) -> tuple[int, str]:
    """Run a command in a pseudo-terminal `columns` wide, typing `answer` once it asks."""
    pty, select, termios = (importlib.import_module(name) for name in ("pty", "select", "termios"))  # not on Windows
    fd, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    code = (
        "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # so that Ctrl-C is a signal
        "from dsabench.cli.app import main; main()"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS", "DSABENCH_STORE")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**env, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""
    while select.select([fd], [], [], 60)[0]:
        try:
            data = os.read(fd, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data.decode()
        if answer and seen.rstrip().endswith("[y/N]:"):
            os.write(fd, answer.encode())
            answer = ""
    os.close(fd)
    return process.wait(60), seen.replace("\r\n", "\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_in_a_terminal_of_80_columns_every_row_fits_and_rm_asks(store: Path, tmp_path: Path) -> None:
    code, out = in_terminal(["runs", "rm", "--where", "length == 64"], "n\n", tmp_path)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert max(map(len, plain.splitlines())) <= 80, plain
    assert "\x1b[1mid" in out, "the heading is bold"
    assert "left out at 80 columns: attention" in plain and "the id says attention" in plain
    assert "Remove 4 runs (0.0 MB)? [y/N]:" in plain  # the terminal may echo the answer before what follows
    assert plain.endswith("Nothing was removed.\n")
    assert len(load_runs(store)) == 8
    code, out = in_terminal(["runs", "rm", "dsa-L64-s1"], "y\n", tmp_path)
    assert code == 0
    assert "Removed: dsa-L64-s1-" in out
    assert len(load_runs(store)) == 7
    code, out = in_terminal(["runs", "rm", "dense-L64-s1"], "\x03", tmp_path)
    assert code == 130
    assert "Nothing was removed." in out
    assert len(load_runs(store)) == 7


@pytest.mark.parametrize("words", [["runs", "--help"], ["runs", "list", "--help"], ["runs", "rm", "-h"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    assert loaded(words, Path()) == []


@pytest.mark.slow
def test_no_command_of_it_loads_torch(store: Path) -> None:
    for words in (["runs"], ["runs", "show", "dsa-L64-s1"], ["runs", "rm", "dsa-L128-s3", "--yes"]):
        assert not {"torch", "matplotlib", "scipy"} & set(loaded(words, store.parent)), words
