"""Sweeps that are killed again and again, and sweeps that share a store, against an undisturbed one.

    python tests/support/chaos.py --kills 50 --seed 1        # the long version: some minutes on two cores

tests/test_chaos.py runs a short one. Every sweep is the command line itself, in a process forked from one that has
imported everything: an import takes seconds, and a kill in it shows nothing. Half of the kills come from outside at a
random time; half from inside, at a random one of the calls that change files, begin a step, evaluate or write the
index, so that moments which last microseconds are hit as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import dsabench.sweeps.single_run  # noqa: F401
from dsabench.cli import app
from dsabench.cli.views import sweep_result
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.step import TrainStep
from dsabench.store import RunWriter, index, load_runs, read_metrics, read_run
from dsabench.store.curves import load_curves
from dsabench.store.files import is_held
from dsabench.store.sweep_records import readable_sweeps
from dsabench.store.verification import damage

CONFIG = """
base:
  attention: {kind: dsa, top_k_ratio: 0.25, indexer: {n_heads: 2, head_dim: 8, warmup_share: 0.25}}
  model: {d_model: 16, n_layers: 1, n_heads: 2, d_ff: 16, n_experts: 2, experts_per_token: 1}
  data: {source: "path:corpus", tokenizer: bytes, val_share: 0.25}
  train: {steps: 12, tokens_per_step: 64, warmup_steps: 5, eval_every: 6, eval_tokens: 128, log_every: 5}
  engine: {device: cpu, checkpoint_every: 2}
axes:
  length: [16, 32]
  attention.kind: [dense, dsa]
  seed: [1, 2, 3]
"""

TIMES = {
    "created", "updated", "order", "environment.audit.seconds", "step_ms", "warmup_step_ms", "tokens_per_second", "mfu",
    "train_seconds", "matmul_flops_per_second", "peak_memory_mb", "seconds", "eval_seconds",
    "other_load", "others_seconds", "watched_seconds",
}  # fmt: skip
"""What the clock, the memory of the whole process or other programs decide. Everything else must be the same."""

MUTATIONS = ("open", "write", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "remove", "ftruncate")


def prepare(folder: Path) -> Path:
    """A corpus in `folder`, and the path of a config."""
    generator = random.Random(0)
    (folder / "corpus").mkdir(parents=True)
    for i in range(6):
        words = ["".join(generator.choices("abcdef", k=4)) for _ in range(120)]
        (folder / f"corpus/{i}.txt").write_text(" ".join(words), encoding="ascii")
    config = folder / "chaos.yaml"
    config.write_text(CONFIG.replace("path:corpus", f"path:{folder / 'corpus'}"), encoding="utf-8")
    return config


# What two stores have in common


def comparable(value: Any) -> Any:
    """JSON without what the clock decides."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in TIMES}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def picture(root: Path) -> dict[str, Any]:
    """Everything in a store that the clock does not decide, by path; and the index is what a new one would be."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() or path.name in (".index.json.gz", ".order") or path.suffix == ".seal":
            # Caches of run.json; the time of a write.
            found[name] = None
        elif path.name == "index.parquet":
            frame = pd.read_parquet(path)
            pd.testing.assert_frame_equal(frame, load_runs(root))
            pd.testing.assert_frame_equal(
                frame, index.table(index.row_of(f)[0] for f in root.iterdir() if "-L" in f.name)
            )
            found[name] = json.loads(frame.drop(columns=TIMES, errors="ignore").to_json())
        elif path.name == "curves.parquet":  # its metadata hold signatures of files, its columns times
            with tempfile.TemporaryDirectory() as copied:  # where no cache is
                bare = shutil.copytree(root, Path(copied) / "runs", ignore=shutil.ignore_patterns("curves.parquet"))
                pd.testing.assert_frame_equal(load_curves(root).frame, load_curves(bare).frame)
            frame = load_curves(root).frame
            found[name] = json.loads(frame.drop(columns=TIMES, errors="ignore").to_json())
        elif path.name == "metrics.jsonl":
            found[name] = [comparable(record) for record in read_metrics(root, path.parent.name)]
        elif path.name in ("run.json", "state.json", "store.json") or path.parent.name == "sweeps":
            document = json.loads(path.read_bytes())
            document.pop("command", None)  # names the store
            assert document.pop("seal", None) or path.name in ("state.json", "store.json")
            document.get("environment", {}).get("audit", {}).pop("seconds", None)
            found[name] = comparable(document)
        elif path.name == "seal.json":  # of files with times in them
            found[name] = sorted(json.loads(path.read_bytes())["files"])
        else:
            found[name] = path.read_bytes()
    return found


def differences(one: Path, other: Path) -> list[str]:
    """How two stores differ, the times aside, and which locks are held."""
    ours, theirs = picture(one), picture(other)
    wrong = [f"only in {one.name}: {name}" for name in sorted(ours.keys() - theirs.keys())]
    wrong += [f"only in {other.name}: {name}" for name in sorted(theirs.keys() - ours.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        if json.dumps(ours[name], default=repr) != json.dumps(theirs[name], default=repr):
            wrong.append(f"{name} differs")
    return wrong + [f"held: {path}" for path in other.rglob(".*lock") if is_held(path)]


def alarms(root: Path) -> list[str]:
    """What a reader would call damage; a kill is none. Every byte of the store is compared with its seal."""
    found = []
    for run in sorted(root.glob("*-L*")):
        row, _ = index.row_of(run)
        if row["status"] in ("damaged", "unreadable") and (run / "run.json").exists():
            found.append(f"{run.name} reads as {row['status']}: {row['error']}")
        elif (run / "run.json").exists():
            record = read_run(root, run.name)
            found += [f"{run.name}: {phrase}" for phrase in damage(run, record, weights=True)]
            read_metrics(root, run.name)
    return found + (readable_sweeps(root)[1] if root.exists() else [])


# Sweeps in processes of their own


def start(folder: Path, store: str, words: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Begin `dsabench sweep` in a child; its process id. What it prints goes to STORE.log."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        log = os.open(f"{store}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["dsabench", "sweep", "--config", "chaos.yaml", "--store", store, "--out", f"{store}-out", *words]
        note_ends(f"{store}.ends")
        before()
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(child: int) -> int:
    """Wait for a child; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def note_ends(path: str) -> None:
    """Have every run that is recorded as done named in a file."""
    honest = RunWriter.finish

    def finish(self: RunWriter, status: Any, *rest: Any, **more: Any) -> Any:
        record = honest(self, status, *rest, **more)
        if status == "done":
            with open(path, "a", encoding="ascii") as file:  # noqa: PTH123
                file.write(f"{record.run_id}\n")
        return record

    RunWriter.finish = finish  # type: ignore[method-assign]


def die_at(moment: int, where: str) -> Callable[[], None]:
    """In a child: SIGKILL itself at the `moment`-th call, noting in the file `where` which one that was."""

    def patch() -> None:
        left = [moment]
        plain_open, plain_write = os.open, os.write

        def wrap(owner: Any, name: str) -> None:
            real = getattr(owner, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    fd = plain_open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                    what = Path(str(args[0])).name if name in ("open", "replace", "rename", "mkdir") else ""
                    plain_write(fd, f"{name} {what}\n".encode())
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(owner, name, call)

        for name in MUTATIONS:
            wrap(os, name)
        wrap(TrainStep, "_compute")
        wrap(Evaluator, "evaluate")
        wrap(index, "_write_index")

    return patch


def kill_and_restart(folder: Path, words: list[str], kills: int, seed: int) -> dict[str, Any]:
    """A sweep that is killed `kills` times, spread over its runs, and started again until it is done."""
    draw, began = random.Random(seed), time.monotonic()
    n_runs = len(list((folder / "calm").glob("*-L*")))
    killed = starts = 0
    inside = Counter[str]()
    false_alarms: list[str] = []
    while True:
        starts += 1
        moments = folder / "moments"
        moments.unlink(missing_ok=True)
        done = len(list((folder / "wild").glob("*-L*/checkpoint")))
        # A short life when it is ahead, or the sweep would end before the last kill.
        ahead = (done + 1) / n_runs > killed / kills
        if killed >= kills:
            child = start(folder, "wild", words)
        elif draw.random() < 0.5:
            child = start(folder, "wild", words, die_at(draw.randint(1, 80 if ahead else 400), str(moments)))
        else:
            child, until = start(folder, "wild", words), time.monotonic() + draw.uniform(0, 0.8 if ahead else 2.5)
            while time.monotonic() < until and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
        code = end_of(child)
        if code != -signal.SIGKILL:
            break
        killed += 1
        inside[moments.read_text().strip() if moments.exists() else "from outside"] += 1
        false_alarms += [f"{alarm} (killed at {list(inside)[-1]})" for alarm in alarms(folder / "wild")]
    return {
        "kills": killed,
        "starts": starts,
        "exit code": code,
        "seconds": round(time.monotonic() - began, 1),
        "killed at": dict(inside.most_common()),
        "false alarms": false_alarms + alarms(folder / "wild"),
        "differences": differences(folder / "calm", folder / "wild") + results_differ(folder, "wild"),
    }


def together(folder: Path, words: list[str]) -> dict[str, Any]:
    """Two sweeps of the same runs at the same time."""
    began = time.monotonic()
    children = [start(folder, "both", words) for _ in range(2)]
    codes = [end_of(child) for child in children]
    return {
        "exit codes": codes,
        "seconds": round(time.monotonic() - began, 1),
        "times done": sorted(Counter((folder / "both.ends").read_text().split()).values()),
        "differences": differences(folder / "calm", folder / "both") + results_differ(folder, "both"),
    }


def crash(folder: Path, words: list[str]) -> dict[str, Any]:
    """A sweep whose process dies of the first run; then the same command; then the same with --retry-failed."""

    def patch() -> None:
        TrainStep._compute = lambda self, stage: os.kill(os.getpid(), signal.SIGSEGV)  # type: ignore[method-assign]

    codes = [
        end_of(start(folder, "dead", words, patch)),
        end_of(start(folder, "dead", words)),
        end_of(start(folder, "dead", [*words, "--retry-failed"])),
    ]
    return {
        "exit codes": codes,
        "said": "its process died: Fatal Python error: Segmentation fault" in (folder / "dead.log").read_text(),
        "differences": differences(folder / "calm", folder / "dead"),
    }


def results_differ(folder: Path, store: str) -> list[str]:
    """Files of results that one sweep has and the other has not: temporary ones, say."""
    calm, wild = (
        {p.relative_to(folder / out) for p in (folder / out).rglob("*")} for out in ("calm-out", f"{store}-out")
    )
    return [f"only in one of the results: {path}" for path in sorted(calm ^ wild)]


def main() -> None:
    """See the docstring of the file; prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="without results, and no two sweeps at the same time")
    parser.add_argument("words", nargs="*", help="more words for `dsabench sweep`, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DSABENCH_CACHE"] = str(folder / "cache")
        prepare(folder)
        if given.short:
            sweep_result.report_sweep = lambda *rest: None
        else:
            from dsabench.figures.sequence_length import sequence_length_comparison  # noqa: F401
            from dsabench.figures.style import new_figure, render

            render(new_figure(1, 1), "png")
        began = time.monotonic()
        code = end_of(start(folder, "calm", given.words))
        found: dict[str, Any] = {"undisturbed": {"exit code": code, "seconds": round(time.monotonic() - began, 1)}}
        if code:
            sys.exit((folder / "calm.log").read_text())
        found["killed"] = kill_and_restart(folder, given.words, given.kills, given.seed)
        found["crashed"] = crash(folder, given.words)
        if not given.short:
            found["together"] = together(folder, given.words)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
