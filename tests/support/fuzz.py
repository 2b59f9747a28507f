"""Mutated specs, metrics files and run.json files through the public readers: a clean error or a valid result.

    python tests/support/fuzz.py 10000          # the same examples for the same --seed, whatever the count
    python tests/support/fuzz.py --only run-17  # one of them again, with its traceback

What fails: another exception than the project's own, a warning, an example that takes longer than LIMIT_S, a control
character on stdout or stderr, and a change beside the store. test_fuzz.py runs a few hundred of them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from synthetic import experiment

from dsabench.analysis.compare import compare
from dsabench.analysis.scope import look_at
from dsabench.cli import app
from dsabench.errors import DsabenchError
from dsabench.models import load_spec
from dsabench.spec.config import load_sweep, shipped_configs
from dsabench.spec.override import parse_override
from dsabench.store import load_curves, load_metrics, load_runs, read_metrics, read_run

KINDS = ("spec", "metrics", "run")

LIMIT_S = 20.0
"""Seconds for one example: hundreds of times what it takes, on a busy machine too."""

TOKENS = [
    "!!python/object/apply:os.system ['touch pwned']", "!!binary x", "&a [*a, *a]", "*a", "<<: *a", "? ", "- ", ": ",
    "---\n", "...\n", "%YAML 1.1\n", "\t", "{", "}", "[", "]", "[" * 3000, "{a: " * 500, '{"a":' * 3000, '"', "'", "#",
    "|\n", ">\n", "~", "null", "true", "NaN", "-Infinity", "Infinity", ".nan", ".inf", "1e999", "-0", "9" * 5000,
    "0x1F", "0o17", "1_000", "2026-01-01", "12:30:45", "../../x", "/etc/passwd", "~nobody/x", "\x00", "\x1b[31m",
    "\x7f", "\u202e", "\u2028", "\ufeff", "\\ud800", "\\u0000", "<script>alert(1)</script>", "=cmd|' /C calc'!A0",
    "$\\frac$", "%s", "{0}", "\n", "\n\n", ",", "kind", "plugins: [x.py]", "axes", "task:recall", "path:.", "sweeps",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf"), 2**31,
    2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400, "", " ", "x", "\x00", "\x1b]0;x\x07", "\ud800", "\u202eabc",
    "a\nb", "../../x", "/etc/passwd", "~nobody", "NaN", "1e-3", "<script>alert(1)</script>", "=1+1", "$x$", "a" * 5000,
    [], {}, [[]], [None], ["x"], [1, 2], {"x": 1}, {"": {}}, {"a.b": 1}, [["x"] * 3] * 3, "dense", "dsa", "block",
    "task:recall", "task:none", "path:nowhere", "bytes", "2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59-23:59",
    "done", "running",
]  # fmt: skip


OVERRIDDEN = (
    "length",
    "seed",
    "attention",
    "train.steps",
    "data.source",
    "plugins",
    "model.d_model",
    "data.task",
    "x.y",
)
"""Fields that a `--set` changes."""

DEEP = "@deep"
"""Stands for lists in lists, which `as_json` writes."""


class TooSlowError(BaseException):
    """An example that does not end; no reader can catch it."""


class Failure(Exception):
    """What an example did that it must not."""


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """`content` with a few changes at random places."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        end = min(end, at + draw.choice((1, 4, 40, 4000)))
        what = draw.randrange(7)
        if what == 0:
            content = content[:at] + content[end:]
        elif what == 1:
            content = content[:at] + draw.randbytes(draw.randrange(1, 6)) + content[at:]
        elif what == 2:
            content = content[:at] + content[at:end] * 2 + content[end:]
        elif what == 3 and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
        elif what == 4 and draw.random() < 0.3:
            content = content[:at]
        else:
            content = content[:at] + draw.choice(TOKENS).encode("utf-8", "surrogatepass") + content[at:]
    return content


def mutated(document: Any, draw: random.Random) -> Any:
    """A copy of JSON values in which a few are replaced, removed, renamed, wrapped or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        places = list(_places(document))
        if not places:
            return draw.choice(VALUES)
        parent, key = draw.choice(places)
        what = draw.randrange(8)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, dict):
            new = draw.choice([*(str(v) for v in VALUES[:40]), *(str(k) for p, k in places if isinstance(p, dict))])
            parent[new] = parent.pop(key)
        elif what == 2:
            parent[key] = {str(draw.choice(VALUES)): parent[key]} if draw.random() < 0.5 else [parent[key]]
        elif what == 3:
            other, there = draw.choice(places)
            parent[key] = copy.deepcopy(other[there])
        elif what == 4 and draw.random() < 0.2:
            parent[key] = DEEP
        elif what == 5 and isinstance(parent[key], int | float):
            parent[key] = draw.choice((-1, 0, 1, 1000, 10**9)) * parent[key] + draw.choice((0, 1, 0.5))
        else:
            parent[key] = copy.deepcopy(draw.choice(VALUES))
    return document


def as_json(document: Any, draw: random.Random) -> str:
    """The document as JSON with Python's NaN and Infinity."""
    depth = draw.choice((50, 300, 900, 1100, 5000))
    return json.dumps(document, ensure_ascii=draw.random() < 0.5).replace(f'"{DEEP}"', "[" * depth + "]" * depth)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) in it."""
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


class Fuzz:
    """Examples by name (`run-17`) in a folder of their own."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        self.store = folder / "runs"
        ids = experiment(self.store, lengths=(16,), seeds=(1, 2, 3), evaluations=2)
        experiment(self.store, lengths=(16,), seeds=(1,), sweep=None, minutes=9, train={"steps": 3}, task_accuracy=0.5)
        self.run_id = ids[1]
        (folder / "precious.txt").write_text("as it was")
        self.record, self.metrics = (self.store / self.run_id / name for name in ("run.json", "metrics.jsonl"))
        self.originals = {path: path.read_bytes() for path in (self.record, self.metrics)}
        self.specs = [path for path in shipped_configs().values() if "plugins:" not in path.read_text()]
        self.plain = [load_sweep(str(path)).plain() for path in self.specs]
        self.spec = folder / "spec.yaml"
        self.spec.write_text("")
        load_runs(self.store)
        self.beside = self._beside()
        self.outcomes: Counter[str] = Counter()

    def example(self, name: str) -> None:
        """Make and read one example. Raises what it must not."""
        kind, _, number = name.partition("-")
        draw = random.Random(f"{self.seed} {kind} {number}")
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with _limit(), warnings.catch_warnings():
                warnings.simplefilter("error")
                getattr(self, f"_{kind}")(draw)
            if self._beside() != self.beside:
                raise Failure("something beside the store has changed")
        finally:
            os.chdir(before)
            for path, content in self.originals.items():
                path.write_bytes(content)

    def _spec(self, draw: random.Random) -> None:
        content = draw.choice(self.specs).read_bytes()
        if draw.random() < 0.5:
            content = mutated_bytes(content, draw)
        else:
            content = as_json(mutated(draw.choice(self.plain), draw), draw).encode("utf-8", "surrogatepass")
        self.spec.write_bytes(content)
        self._read(lambda: load_spec(str(self.spec)) if draw.random() < 0.5 else _few_runs(str(self.spec)))
        if draw.random() < 0.7:
            return
        path = draw.choice(
            ("length", "seed", "attention", "train.steps", "data.source", "plugins", "model.d_model", "x.y")
        )
        text = draw.choice(TOKENS) if draw.random() < 0.5 else json.dumps(draw.choice(VALUES))
        self._read(lambda: load_spec("quick", dict([parse_override(f"{path}={text}")])))

    def _metrics(self, draw: random.Random) -> None:
        content = self.originals[self.metrics]
        if draw.random() < 0.5:
            content = mutated_bytes(content, draw)
        else:
            lines = [json.loads(line) for line in content.splitlines()]
            lines = mutated(lines, draw)
            lines = lines if isinstance(lines, list) else [lines]
            content = "".join(as_json(line, draw) + "\n" for line in lines).encode("utf-8", "surrogatepass")
        self.metrics.write_bytes(content)
        self._read(lambda: read_metrics(self.store, self.run_id))
        self._read(lambda: load_metrics(self.store))
        self._read(lambda: load_curves(self.store))
        if draw.random() < 0.2:
            self._shown(draw, ["runs", "show", self.run_id], ["compare"], ["compare", "--json"])

    def _run(self, draw: random.Random) -> None:
        content = self.originals[self.record]
        if draw.random() < 0.4:
            content = mutated_bytes(content, draw)
        else:
            content = as_json(mutated(json.loads(content), draw), draw).encode("utf-8", "surrogatepass")
        self.record.write_bytes(content)
        readable = self._read(lambda: read_run(self.store, self.run_id))
        self._read(lambda: load_runs(self.store))
        show = ["runs", "show", self.run_id]
        if not readable or draw.random() < 0.6:  # another run is not compared: most of the time would go there
            self._shown(draw, ["runs"], ["runs", "--json"], show, [*show, "--json"], ["runs", "--where", "seed > 1"])
        elif draw.random() < 0.5:
            self._read(lambda: compare(look_at(self.store, everything=draw.random() < 0.5)))
        else:
            self._shown(draw, *(["compare", *form] for form in ([], ["--all"], ["--csv"], ["--markdown"])))

    def _read(self, call: Callable[[], Any]) -> bool:
        try:
            call()
        except DsabenchError as error:
            if not str(error).strip():
                raise Failure("an error without a message") from error
            self.outcomes["refused"] += 1
            return False
        self.outcomes["read"] += 1
        return True

    def _shown(self, draw: random.Random, *commands: list[str]) -> None:
        """One of these commands, in this process."""
        words = draw.choice(commands)
        out, err = io.StringIO(), io.StringIO()
        argv, sys.argv = sys.argv, ["dsabench", *words]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                app.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.argv = argv
        shown = out.getvalue() + err.getvalue()
        if code not in (0, 2):
            raise Failure(f"{words}: exit code {code}: {err.getvalue()}")
        if odd := {c for c in shown if not c.isprintable() and c != "\n"}:
            raise Failure(f"{words}: it printed {odd}")
        self.outcomes["shown" if code == 0 else "refused"] += 1

    def _beside(self) -> list[tuple[str, int]]:
        """What is in the folder, without the store's content and the spec's."""
        found = [path for path in self.folder.iterdir() if path not in (self.spec, self.store)]
        return sorted((path.name, path.stat().st_mtime_ns) for path in found)


def _few_runs(path: str) -> None:
    sweep = load_sweep(path)
    sizes = [len(values) for values in sweep.axes.values()]
    if sum(sizes) < 12:
        sweep.runs()


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooSlowError(f"longer than {LIMIT_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def names(count: int, first: int = 0) -> list[str]:
    """`count` examples, a third of each kind."""
    return [f"{KINDS[i % len(KINDS)]}-{i // len(KINDS)}" for i in range(first, first + count)]


def main() -> None:
    """Run examples and print what failed, and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("count", nargs="?", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    given = parser.parse_args()
    started, slowest, failed = time.monotonic(), 0.0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), given.seed)
        wanted = given.only or names(given.count, given.first)
        for name in wanted:
            begun = time.monotonic()
            try:
                fuzz.example(name)
            except (Exception, TooSlowError) as error:
                where = traceback.extract_tb(error.__traceback__)
                ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "dsabench" in f.filename][-2:]
                said = f"{type(error).__name__} at {' '.join(ours)}: {str(error)[:150]!r}"
                key = f"{type(error).__name__} {' '.join(ours)}"
                failed[key] += 1
                if failed[key] == 1:
                    print(f"{name}: {said}", flush=True)
                if given.only:
                    traceback.print_exception(error)
            slowest = max(slowest, time.monotonic() - begun)
    took = time.monotonic() - started
    counts = ", ".join(f"{n} {what}" for what, n in sorted(fuzz.outcomes.items()))
    print(f"{len(wanted)} examples, {failed.total()} failed; {counts}; {took:.0f} s, the slowest {slowest:.1f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
