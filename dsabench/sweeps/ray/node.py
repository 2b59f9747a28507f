"""The task on a node of a cluster: it trains one run in a store of its own, and sends its results home.

Messages are pickled, because the driver and its tasks alone make them. A spec travels as plain values: a plugin's class
is found by executing the plugin that the spec names.
"""

from __future__ import annotations

import hashlib
import platform
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dsabench import data as data_package
from dsabench.data.cache import cache_folder, replace_file
from dsabench.engine.device import resolve
from dsabench.engine.sink import Update
from dsabench.errors import DataError, DsabenchError, StoreError
from dsabench.spec.run import RunSpec, validate
from dsabench.store import RunRecord, find_checkpoint
from dsabench.store.files import explained, signature
from dsabench.store.layout import LOG, METRICS, run_folder
from dsabench.sweeps.in_process import Here
from dsabench.sweeps.launcher import Crowded, Ended, Job, Note, Outcome, Refused
from dsabench.sweeps.origin import Origin, fingerprint
from dsabench.sweeps.ray.payload import ORIGIN, PIECE_BYTES, TOKENIZER, Order, pieces
from dsabench.sweeps.single_run import DeviceLostError
from dsabench.user_folders import temporary_folder

HOME_SECONDS = 60.0
"""Least time between checkpoints that are sent home; a node's death loses about as much training."""

MOST_UNSENT = 4
"""Reports that may wait to be taken by Ray; with more the run waits."""

UPDATE_SECONDS = 1.0
"""Least time between updates for the display."""


@dataclass(frozen=True)
class Began:
    """The run is about to be trained."""

    host: str


@dataclass(frozen=True)
class Lines:
    """New lines of metrics.jsonl."""

    text: bytes


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; its files follow one after another, as `bytes` of at most PIECE_BYTES."""

    sizes: dict[str, int]


@dataclass(frozen=True)
class Result:
    """The run's outcome: the last report. An `Ended` holds the record of the node's own store."""

    outcome: Outcome
    log: str | None = None


Report = Began | Note | Update | Lines | Checkpoint | bytes | Result


def stream(
    train: Callable[..., Iterator[Report]],
    plugins: Mapping[str, bytes],
    order: Order,
    files: Mapping[str, Iterable[bytes]],
) -> Iterator[list[Report]]:
    """The reports of `train(order, plugins, files)` as a task streams them home."""
    return together(train(order, plugins, files))


def together(reports: Iterable[Report]) -> Iterator[list[Report]]:
    """The reports in lists of about PIECE_BYTES at most, because each trip costs time."""
    batch: list[Report] = []
    size = 0
    for report in reports:
        batch.append(report)
        size += len(report) if isinstance(report, bytes) else 0
        if size >= PIECE_BYTES or not isinstance(report, Began | Lines | Checkpoint | bytes):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def train_on_node(
    order: Order, plugins: Mapping[str, bytes], checkpoint: Mapping[str, Iterable[bytes]]
) -> Iterator[Report]:
    """Train the run, resuming from `checkpoint`'s files where there are any; yields its reports.

    plugins: the content of each plugin file of the spec, by the path that it has there.
    """
    yield Began(platform.node())
    names: dict[str, str] = {}
    """The driver's paths of the plugins, by their paths here."""

    def work(say: Callable[[Report], None]) -> None:
        if order.threads is not None:
            torch.set_num_threads(order.threads)
        here = {path: _write(path, content) for path, content in plugins.items()}
        names.update({ours: theirs for theirs, ours in here.items()})
        spec = validate({**order.spec, "plugins": [here[path] for path in order.spec["plugins"]]})
        with temporary_folder() as folder:
            spec, files = _with_tokenizer(spec, checkpoint, folder / "tokenizer.json")
            origin, files = _origin(order, files, folder / "origin")
            job = Job(spec, "", halve=order.halve, run_id=order.run_id, origin=origin)
            _train_here(order, job, folder / "runs", files, say)

    try:
        for report in _said(work):
            yield _as_at_home(report, names)
    except DsabenchError as error:  # no corpus, say
        yield _as_at_home(Result(Refused(error)), names)
    except OSError as error:  # a full disk, say
        yield _as_at_home(Result(Refused(StoreError(str(error)))), names)


def _said(work: Callable[[Callable[[Report], None]], None]) -> Iterator[Report]:
    """The reports that work(say) says, and the exception that it raises. It runs in a thread of its own, so that a run
    goes on while its reports travel."""
    said: queue.Queue[Report | BaseException | None] = queue.Queue(MOST_UNSENT)

    def run() -> None:
        try:
            work(said.put)
            said.put(None)
        except BaseException as error:
            said.put(error)

    threading.Thread(target=run, name="training", daemon=True).start()
    while (report := said.get()) is not None:
        if isinstance(report, BaseException):
            raise report
        yield report


def _with_tokenizer(
    spec: RunSpec, files: Mapping[str, Iterable[bytes]], path: Path
) -> tuple[RunSpec, dict[str, Iterable[bytes]]]:
    """The spec with the tokenizer that came with the files, written to `path`, and the other files."""
    others = dict(files)
    parts = others.pop(TOKENIZER, None)
    if parts is None:
        return spec, others
    with path.open("wb") as file:
        file.writelines(parts)
    data = spec.data.model_copy(update={"tokenizer": str(path)})
    return spec.model_copy(update={"data": data}), others


def _origin(
    order: Order, files: Mapping[str, Iterable[bytes]], folder: Path
) -> tuple[Origin | None, dict[str, Iterable[bytes]]]:
    """What the run starts from, its files written into `folder`; and the files of the run's own checkpoint."""
    own = {name: parts for name, parts in files.items() if not name.startswith(ORIGIN)}
    if order.origin is None:
        return None, own
    theirs = {name.removeprefix(ORIGIN): parts for name, parts in files.items() if name.startswith(ORIGIN)}
    folder.mkdir()
    for name, parts in theirs.items():
        with (folder / name).open("wb") as file:
            file.writelines(parts)
    name = str(order.origin.get("run") or "start.checkpoint")
    return Origin(name, folder if theirs else None, order.origin, key=order.fingerprint["start"]), own


def _train_here(
    order: Order, job: Job, store: Path, checkpoint: Mapping[str, Iterable[bytes]], say: Callable[[Report], None]
) -> None:
    start = None if job.origin is None else job.origin.key
    found = fingerprint(job.spec, data_package.fingerprint(job.spec.data), start)
    if found != order.fingerprint:
        other = ", ".join(name for name in order.fingerprint if found.get(name) != order.fingerprint[name])
        raise DataError(
            f"{job.spec.data.source}: not the same as where the sweep was started (its {other} has another digest), "
            "so that this would be another run; give every node the same files"
        )
    folder = run_folder(store, job.run_id)
    if checkpoint:
        with explained(folder):
            (folder / "checkpoint").mkdir(parents=True)
            for name, parts in checkpoint.items():
                with (folder / "checkpoint" / name).open("wb") as file:
                    file.writelines(parts)
            (folder / METRICS).write_bytes(order.metrics)
    here = Here(store, resolve(job.spec.engine), order.concurrency, lambda line: say(Note(line)))
    sent = _Sent(folder, len(order.metrics))
    told_at = -UPDATE_SECONDS

    def observe(update: Update) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= UPDATE_SECONDS:
            told_at = time.monotonic()
            say(update)
        for report in sent.since(last=False):
            say(report)

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: say(Note(str(message)))
        try:
            here.begin(job, observe)
            while (ended := here.turn()) is None:
                pass
        finally:
            here.close()
    for report in sent.since(last=True):
        say(report)
    outcome = ended[1]
    if isinstance(outcome, Refused) and isinstance(outcome.error, DeviceLostError):
        outcome = Crowded("lost its GPU beside others")
    log = folder / LOG
    say(Result(outcome, log.read_text(encoding="utf-8") if log.exists() else None))


class _Sent:
    """The parts of a run's folder that have been sent home."""

    def __init__(self, folder: Path, metrics: int) -> None:
        self.folder, self.metrics = folder, metrics
        self.checkpoint, self.at = self._newest(), time.monotonic()

    def _newest(self) -> object:
        return signature(self.folder / "checkpoint" / "state.json")

    def since(self, last: bool) -> Iterator[Report]:
        """New metrics, then the new checkpoint that they lead to, if one is due; last: all that is new."""
        newest = self._newest()
        if not last and (newest == self.checkpoint or time.monotonic() - self.at < HOME_SECONDS):
            return
        with suppress(FileNotFoundError), (self.folder / METRICS).open("rb") as file:
            file.seek(self.metrics)
            text = file.read()
            if text:
                self.metrics += len(text)
                yield Lines(text)
        if newest == self.checkpoint or (folder := find_checkpoint(self.folder.parent, self.folder.name)) is None:
            return
        self.checkpoint, self.at = newest, time.monotonic()
        files = sorted(folder.iterdir())
        yield Checkpoint({path.name: path.stat().st_size for path in files})
        for path in files:
            yield from pieces(path)


def _write(plugin: str, content: bytes) -> str:
    """The path of a plugin file on this node: always the same one, because a process loads it once."""
    folder = cache_folder("plugins") / hashlib.sha256(content).hexdigest()[:32]
    folder.mkdir(exist_ok=True)
    file = folder / Path(plugin).name
    if not file.exists() or file.read_bytes() != content:

        def write(temporary: Path) -> None:
            temporary.write_bytes(content)

        replace_file(file, write)
    return str(file)


def _as_at_home(report: Report, names: Mapping[str, str]) -> Report:
    """The report with the driver's paths of plugins in its texts, and the node's name in its error."""

    def said(text: str) -> str:
        for ours, theirs in names.items():
            text = text.replace(ours, theirs)
        return text

    match report:
        case Note(line):
            return Note(said(line))
        case Result(Ended(RunRecord(error=str(error)) as record), log):
            return Result(Ended(record.model_copy(update={"error": said(error)})), None if log is None else said(log))
        case Result(Refused(error)):
            return replace(report, outcome=Refused(type(error)(said(f"on node {platform.node()}: {error}"))))
        case _:
            return report
