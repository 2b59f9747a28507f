"""The training loop: one for all attention variants, on every device.

The run is cut into segments, at whose ends the host waits for the device: to log, evaluate, checkpoint or change the
stage. Between them the device is never waited for, and a segment's wall time over its steps is an honest step time.

A run that is stopped (KeyboardInterrupt, or its generator is closed) is checkpointed at its last step.

Processes that train one run together, the ranks, go through this loop in step. Rank 0 decides for all of them what
depends on a clock or a signal, and it alone evaluates and records.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from dsabench.attention.base import Stage
from dsabench.data import cut
from dsabench.engine import checkpoint, conversion_cost
from dsabench.engine.copied_tokens import CopiedTokens
from dsabench.engine.evaluation import evaluation_metrics, extrapolated
from dsabench.engine.optimizer import recorded_stage, stage_at
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.run_records import RunRecords
from dsabench.engine.segments import segments
from dsabench.engine.selection_recall import selection_recall
from dsabench.engine.sink import Seldom, Update
from dsabench.engine.slot import Memory, Slot, Slots
from dsabench.engine.staged_batches import staged
from dsabench.engine.step_times import StepTimes
from dsabench.shutdown import deferred

CHECKPOINT_SECONDS = 20.0
"""Least time between checkpoints where engine.checkpoint_every is not set; a kill loses about as much training."""

CHECKPOINT_SHARE = 0.02
"""Largest share of the time that writing them may take then: one of 0.6 GB takes seconds, in which no other run of the
device is given work."""

T = TypeVar("T")

_ADVICE = "a lower learning rate, a longer warm-up or a tighter grad_clip may help"


class TrainingDiverged(Exception):
    """The loss became NaN or Inf; the message names the step."""


def train_steps(run: PreparedRun, slots: Slots | None = None) -> Generator[None, None, dict[str, Any]]:
    """Train one run to its end, resuming from the sink's checkpoint if there is one. The generator's value is the
    run's summary.

    It yields while the device is at work, so that runs in several slots are trained by turns. Step times are measured
    while the other runs wait.

    Raises TrainingDiverged at the first step whose loss is not finite, DeviceError when the run does not fit.
    """
    slots = slots or Slots()
    slot = slots.take(run.spec, run.data.vocab_size, run.execution)
    try:
        summary = yield from TrainingRun(run, slot, shared=slots.count > 1).to_summary()
    except BaseException:
        slots.drop(slot)
        raise
    slots.give(slot)
    return summary


def to_the_end(training: Generator[None, None, T]) -> T:
    """The value of a training generator, driven without other runs beside it."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            value: T = end.value
            return value


@dataclass(frozen=True)
class _Flight:
    """A segment that the device is at work on."""

    first: int
    end: int
    stage: Stage
    alone: bool
    """Whether no other run may use the device until it has landed."""

    start: float
    history_SM: torch.Tensor


class TrainingRun:
    """The state of one run in progress, in a slot that it has to itself."""

    def __init__(self, run: PreparedRun, slot: Slot, shared: bool = False) -> None:
        """shared: other runs use the device at the same time."""
        slot.begin(run.spec)
        self.run, self.spec, self.sink, self.slot, self.shared = run, run.spec, run.sink, slot, shared
        spec = run.spec
        self.execution, self.model, self.optimizer, self.step = slot.execution, slot.model, slot.optimizer, slot.step
        self.ranks = slot.execution.ranks
        self.windows = cut(run.data, spec.length)
        self.progress = checkpoint.Progress()
        self.held_out = self.windows.evaluation("val", spec.train.eval_tokens)
        self.seen = self.windows.evaluation("train", spec.train.eval_tokens)
        self.baseline = self.windows.baseline(self.held_out)
        self.longer = [
            cut(run.data, several * spec.length).evaluation("val", spec.train.eval_tokens)
            for several in spec.train.eval_multiples
        ]
        self.copied = None if spec.data.task is not None else CopiedTokens(self.held_out)
        self.last_eval: dict[str, Any] = {}
        self.last_record: dict[str, Any] = {}
        self.flight: _Flight | None = None
        self.whole = False
        """Whether model, optimizer and progress are at the same step; False before the start and while they change."""
        self.saved_step = 0
        self.step_seconds: float | None = None
        self.resumed_at = 0
        self.saved_at, self.save_seconds = time.monotonic(), 0.0
        self.changes = (spec.attention.warmup_steps(spec.train.steps), *spec.attention.key_changes())

    def to_summary(self) -> Generator[None, None, dict[str, Any]]:
        """Train to the end, as `train_steps` says."""
        try:
            return (yield from self._train())
        except (KeyboardInterrupt, GeneratorExit):
            with suppress(Exception):  # no room, say, or the device is gone: the checkpoint before is still there
                self._stop()
            raise

    def _train(self) -> Generator[None, None, dict[str, Any]]:
        spec, every = self.spec, self.spec.engine.checkpoint_every or self.spec.train.eval_every
        with self.slot.active():
            self._start()
        for first, end, stage in segments(spec, self.progress.step, every, lambda: self.step_seconds):
            with self._changing():
                self.flight = self._launch(first, end, stage)
            if not self.flight.alone:
                yield
            with self._changing():
                self._arrive()
            self._tell()
            self.ranks.stop_if_asked()
            with self.slot.active():
                if self.progress.owes_evaluation:
                    self._evaluate()
            if end % every == 0 and end < spec.train.steps and self._is_time_to_save():
                with self._changing():
                    self._checkpoint()
        with self._changing():
            if not self.last_eval:  # killed between the last checkpoint and the record: only the summary is missing
                self._evaluate(record=False)
            self.times.watch_others()
            self.sink.replace_checkpoint(lambda folder: checkpoint.save(folder, self.model, None, self.progress))
            self.saved_step = self.progress.step
            return self.records.summary(self.last_eval)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """While model, optimizer and progress change: a request to stop waits until they are at the same step again."""
        with deferred(), self.slot.active():
            self.whole = False
            yield
            self.whole = True

    def _stop(self) -> None:
        """Checkpoint the run at its last step, unless a checkpoint has that step or the run is not `whole`."""
        if self.whole and self.flight is not None:
            with self._changing():
                self._arrive()
        if self.whole and self.progress.step > self.saved_step:
            with self._changing():
                self._checkpoint()

    def _start(self) -> None:
        saved = self.ranks.same(self.sink.checkpoint())
        if saved is not None:
            self.progress = checkpoint.load(saved, self.model, self.optimizer)
            self.saved_step = self.progress.step
        elif self.run.start is not None:
            self.run.start.load_into(self.model)
        self.times = StepTimes(self.progress, self.shared)
        self.records = RunRecords(self.run, self.slot, self.progress, self.times)
        self.sink.rewind(-1 if saved is None else self.progress.step)
        self.whole = True
        self._tell()
        if self.progress.step == 0 or self.progress.owes_evaluation:
            self._evaluate()  # before the first step, where the loss should be near ln V
        self.times.on(self.slot.running.describe())
        self.resumed_at = self.progress.step

    def _launch(self, first: int, end: int, stage: Stage) -> _Flight:
        """Set the device to work on steps first..end-1, which lie in one stage."""
        if first in self.changes:
            self.times.forget(stage)
        alone = self.times.wants_alone(stage)
        batches = [self.ranks.share(self.run.batch(self.windows, step)) for step in range(first, end)]
        given = staged(batches, self.execution.device)
        if alone:
            self.execution.synchronize()  # the other runs' work too
        memory = Memory(self.slot)
        start = time.perf_counter()
        history_SM = self.step.run(first, stage, *given)
        # Memory is allocated when work is launched: this peak is the segment's own, whatever other runs do after it.
        peaks = [peak for peak in (self.progress.peak_memory_mb, memory.peak_mb()) if peak is not None]
        self.progress.peak_memory_mb = max(peaks, default=None)
        return _Flight(first, end, stage, alone, start, history_SM)

    def _arrive(self) -> None:
        """Land the segment in flight, and record it where a train record is due; evaluations are left to the caller."""
        flight, self.flight = self.flight, None
        assert flight is not None
        self._land(flight)
        spec, end = self.spec, flight.end
        evaluates = end % spec.train.eval_every == 0 or end == spec.train.steps or conversion_cost.is_due(self.run, end)
        self.progress.owes_evaluation = evaluates
        if evaluates or end % spec.train.log_every == 0:
            self.last_record = self.records.train(flight.stage)
            self.sink.metrics(self.last_record)

    def _land(self, flight: _Flight) -> None:
        """Wait for the device, look at what it did, and capture the stage's graph if this was its first segment."""
        slot, stage, steps = self.slot, flight.stage, flight.end - flight.first
        slot.wait()
        seconds, peak = self.ranks.largest(time.perf_counter() - flight.start, self.progress.peak_memory_mb or 0.0)
        self.step_seconds = seconds / steps
        self.progress.peak_memory_mb = peak or None
        history_SM = self.ranks.mean(flight.history_SM.cpu().double())
        self._check(history_SM, flight.first)
        self.progress.step = flight.end
        graph = slot.running.graph
        steady = stage in self.step.graphs if graph else flight.first not in (self.resumed_at, *self.changes)
        if steady and self.shared and flight.alone and self.times.warms_up(stage):
            steady = False
        charged = self.times.count(seconds, steps, stage, steady=steady, alone=flight.alone)
        self.progress.pending.append((history_SM.tolist(), charged))
        goes_on = flight.end < self.spec.train.steps and stage_at(self.spec, flight.end) == stage
        if graph and stage not in self.step.graphs and goes_on:
            slot.capture(stage)
            self.progress.machine = slot.running.describe()  # without graphs, if that failed

    def _check(self, history: torch.Tensor, first: int) -> None:
        finite = torch.isfinite(history[:, :2]).all(dim=1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            name = "loss" if not math.isfinite(history[bad, 0]) else "indexer loss (KL)"
            value = float(history[bad, 0 if name == "loss" else 1])
            raise TrainingDiverged(f"the {name} became {value} at step {first + bad + 1}; {_ADVICE}")

    def _evaluate(self, record: bool = True) -> None:
        self.ranks.check_equal(self.model.parameters())
        self.last_eval = self.ranks.by_first(lambda: self._evaluated(record))
        self.progress.owes_evaluation = self.progress.owes_evaluation and not record
        self._tell(1.0)

    def _tell(self, evaluated: float | None = None) -> None:
        """Tell the observer how far the run has come."""
        loss, speed = self.last_record.get("loss"), self.last_record.get("tokens_per_second")
        step, val_loss = self.progress.step, self.last_eval.get("val_loss")
        self.run.observe(Update(step, self.spec.train.steps, loss, val_loss, speed, evaluated))

    def _evaluated(self, record: bool) -> dict[str, Any]:
        before = max(0, self.progress.step - 1)
        stage, k = stage_at(self.spec, before), self.spec.attention.top_k_at(before)
        start = time.perf_counter()
        evaluate, told = partial(self.slot.evaluator.evaluate, top_k=k), Seldom(self._tell)
        samples = [self.held_out, self.seen]
        samples += self.longer if self.progress.step in (0, self.spec.train.steps) else []

        def part(done: int) -> Callable[[float], None]:
            return lambda share: told((done + share) / len(samples))

        val, train, *longer = [evaluate(windows, stage, part(done)) for done, windows in enumerate(samples)]
        more = selection_recall(self.model, self.held_out, self.execution, stage, k) or {}
        if self.copied is not None:
            more |= self.copied.losses(val["nats"])
        if longer:
            more |= extrapolated(longer)
        lists = {name: more.pop(name) for name in [*more] if isinstance(more[name], list)}
        found = evaluation_metrics(val, train, more, self.baseline, is_task=self.spec.data.task is not None)
        for name in ("val_loss", "train_loss"):
            if not math.isfinite(found[name]):
                raise TrainingDiverged(f"{name} is {found[name]} after step {self.progress.step}; {_ADVICE}")
        if not record:
            return found
        cost = conversion_cost.of(self.run, self.progress.step, stage, val, lambda it: evaluate(self.held_out, it))
        with deferred():  # recorded once
            self.progress.owes_evaluation = False
            self.sink.metrics(
                {
                    "kind": "eval",
                    "step": self.progress.step,
                    "stage": recorded_stage(self.spec, stage),
                    "seconds": self.progress.seconds,
                    "flops": self.records.flops_after(self.progress.step),
                    **found,
                    **cost,
                    "loss_by_position": val["loss_by_position"],
                    **lists,
                    "eval_seconds": time.perf_counter() - start,
                }
            )
        return found

    def _is_time_to_save(self) -> bool:
        """Whether a checkpoint is due. One of a small model takes as long as a hundred steps, so it is not made every
        few seconds; one of a large model takes seconds, and comes seldom."""
        asked = self.spec.engine.checkpoint_every is not None
        wait = max(CHECKPOINT_SECONDS, self.save_seconds / CHECKPOINT_SHARE)
        return asked or self.ranks.same(time.monotonic() - self.saved_at >= wait)

    def _checkpoint(self) -> None:
        began = time.monotonic()
        self.times.watch_others()
        self.sink.replace_checkpoint(lambda folder: checkpoint.save(folder, self.model, self.optimizer, self.progress))
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        self.save_seconds = self.saved_at - began
