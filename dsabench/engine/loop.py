"""The training loop: one for all attention variants, on every device.

The run is cut into segments, at whose ends the host waits for the device: to log, evaluate, checkpoint or change the
stage. Between them the device is never waited for, and a segment's wall time over its steps is an honest step time.

Who stops a run (KeyboardInterrupt, or closing the generator) has it checkpointed where it is.

Several processes that train one run together are each in this loop, at the same place: what a clock or a signal
decides, rank 0 decides for all, and it alone evaluates and records.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dsabench.attention.base import Stage
from dsabench.data import TaskData, TokenData, cut
from dsabench.engine import checkpoint
from dsabench.engine.backend import backend
from dsabench.engine.device import Execution, matmul_rate
from dsabench.engine.evaluation import evaluation_metrics, selection_recall
from dsabench.engine.optimizer import learning_rate_factor, stage_at
from dsabench.engine.segments import segments
from dsabench.engine.sink import RunSink, Update
from dsabench.engine.slot import Memory, Slot, Slots
from dsabench.engine.step import METRICS, staged
from dsabench.engine.step_times import StepTimes
from dsabench.model.transformer import flops_per_window
from dsabench.shutdown import deferred
from dsabench.spec.run import RunSpec

CHECKPOINT_SECONDS = 20.0
"""Without engine.checkpoint_every: the least time between checkpoints, which is also the most that a kill loses."""

T = TypeVar("T")

_ADVICE = "a lower learning rate, a longer warm-up or a tighter grad_clip may help"


class TrainingDiverged(Exception):
    """The loss became NaN or Inf; the message names the step."""


def train(
    spec: RunSpec,
    data: TokenData | TaskData,
    execution: Execution,
    sink: RunSink,
    observe: Callable[[Update], None] = lambda update: None,
    slots: Slots | None = None,
) -> Generator[None, None, dict[str, Any]]:
    """Train one run to its end, resuming from the sink's checkpoint if it has one; the generator's value is the run's
    summary.

    It yields while its device is at work: the runs of several slots are trained together by taking turns. How fast a
    step is, is measured while the others wait.

    Raises TrainingDiverged at the first step whose loss is not finite, DeviceError when the run does not fit.
    """
    slots = slots or Slots()
    slot = slots.take(spec, data.vocab_size, execution)
    try:
        summary = yield from TrainingRun(spec, data, slot, sink, observe, shared=slots.count > 1).train()
    except BaseException:
        slots.drop(slot)
        raise
    slots.give(slot)
    return summary


def to_the_end(training: Generator[None, None, T]) -> T:
    """The value of a generator, which has the device for itself."""
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

    def __init__(
        self,
        spec: RunSpec,
        data: TokenData | TaskData,
        slot: Slot,
        sink: RunSink,
        observe: Callable[[Update], None],
        shared: bool = False,
    ) -> None:
        """shared: other runs use the device at the same time."""
        slot.begin(spec)
        self.spec, self.data, self.slot, self.sink, self.observe, self.shared = spec, data, slot, sink, observe, shared
        self.execution, self.model, self.optimizer, self.step = slot.execution, slot.model, slot.optimizer, slot.step
        self.ranks = slot.execution.ranks
        self.windows = cut(data, spec.length)
        self.model.most_documents = self.windows.most_documents
        self.progress = checkpoint.Progress()
        self.held_out = self.windows.evaluation("val", spec.train.eval_tokens)
        self.seen = self.windows.evaluation("train", spec.train.eval_tokens)
        self.baseline = self.windows.baseline(self.held_out)
        self.flops = {stage: sum(flops_per_window(self.model, stage).values()) for stage in ("dense", "sparse")}
        self.last_eval: dict[str, Any] = {}
        self.flight: _Flight | None = None
        self.whole = False
        """Whether model, optimizer and progress are of one step: not before the start, nor while they change."""
        self.saved_step = 0
        self.step_seconds: float | None = None
        self.resumed_at = 0
        self.saved_at = time.monotonic()
        self.change = spec.attention.warmup_steps(spec.train.steps)

    def train(self) -> Generator[None, None, dict[str, Any]]:
        """Train to the end; see `loop.train`."""
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
                update = self._arrive()
            if update is not None:
                self.observe(update)
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
            self.sink.replace_checkpoint(lambda folder: checkpoint.save(folder, self.model, None, self.progress))
            self.saved_step = self.progress.step
            return self._summary()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """From one whole state of the run to the next: who asks to stop waits for the end."""
        with deferred(), self.slot.active():
            self.whole = False
            yield
            self.whole = True

    def _stop(self) -> None:
        """Checkpoint the run where it is, if that is further than the last checkpoint and the run is whole."""
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
        self.times = StepTimes(self.progress, self.shared)
        self.sink.rewind(-1 if saved is None else self.progress.step)
        self.whole = True
        if self.progress.step == 0 or self.progress.owes_evaluation:
            self._evaluate()  # before the first step: near ln V, or the start is not sane
        self.times.on(self.slot.running.describe())
        self.resumed_at = self.progress.step

    def _launch(self, first: int, end: int, stage: Stage) -> _Flight:
        """Set the device to work on steps first..end-1, which lie in one stage."""
        spec, alone = self.spec, self.times.wants_alone(stage)
        size, steps = spec.batch_size, spec.train.steps
        batches = [self.ranks.share(self.windows.batch(spec.seed, step, size, steps)) for step in range(first, end)]
        given = staged(batches, self.execution.device)
        if alone:
            self.execution.synchronize()  # the other runs' work too
        memory = Memory(self.slot)
        start = time.perf_counter()
        history_SM = self.step.run(first, stage, *given)
        # Memory is taken when work is launched, so this is the segment's own peak whatever other runs do meanwhile.
        peaks = [peak for peak in (self.progress.peak_memory_mb, memory.peak_mb()) if peak is not None]
        self.progress.peak_memory_mb = max(peaks, default=None)
        return _Flight(first, end, stage, alone, start, history_SM)

    def _arrive(self) -> Update | None:
        """Land the segment in flight, and log it where that is due: all of its last step but an evaluation."""
        flight, self.flight = self.flight, None
        assert flight is not None
        self._land(flight)
        spec, end = self.spec, flight.end
        evaluates = end % spec.train.eval_every == 0 or end == spec.train.steps
        self.progress.owes_evaluation = evaluates
        return self._log(flight.stage) if evaluates or end % spec.train.log_every == 0 else None

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
        steady = stage in self.step.graphs if graph else flight.first not in (self.resumed_at, self.change)
        if steady and self.shared and flight.alone and self.times.warms_up(stage):
            steady = False
        charged = self.times.count(seconds, steps, stage, steady=steady, alone=flight.alone)
        self.progress.pending.append((history_SM.tolist(), charged))
        goes_on = flight.end < self.spec.train.steps and stage_at(self.spec, flight.end) == stage
        if graph and stage not in self.step.graphs and goes_on:
            slot.capture(stage)
            self.progress.machine = slot.running.describe()  # without graphs, if that failed

    def _log(self, stage: Stage) -> Update:
        """One train record for the steps since the last one: the mean loss of all of them, the last step's rest."""
        spec, end = self.spec, self.progress.step
        history_SM = torch.tensor([row for rows, _ in self.progress.pending for row in rows])
        seconds = sum(seconds for _, seconds in self.progress.pending)
        self.progress.pending.clear()
        record: dict[str, Any] = {"kind": "train", "step": end, "stage": stage}
        record.update(zip(METRICS, history_SM[-1].tolist(), strict=True))
        record["loss"] = float(history_SM[:, 0].mean())
        if not self.step.has_own_loss:
            record["kl"] = record["indexer_grad_norm"] = None
        record["learning_rate"] = spec.train.learning_rate * learning_rate_factor(spec.train, end - 1)
        record["seconds"] = self.progress.seconds
        record["shared"] = self.shared
        record["flops"] = self._flops_after(end)
        record["tokens_per_second"] = spec.tokens_per_step * len(history_SM) / seconds
        self.sink.metrics(record)
        val_loss = self.last_eval.get("val_loss")
        return Update(end, spec.train.steps, record["loss"], val_loss, record["tokens_per_second"])

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

    def _evaluated(self, record: bool) -> dict[str, Any]:
        stage = stage_at(self.spec, max(0, self.progress.step - 1))
        self.model.stage = stage
        start = time.perf_counter()
        val, train = (self.slot.evaluator.evaluate(batch) for batch in (self.held_out, self.seen))
        recall = selection_recall(self.model, self.held_out, self.execution) or {}
        lists = {name: recall.pop(name) for name in [*recall] if isinstance(recall[name], list)}
        found = evaluation_metrics(val, train, recall, self.baseline, is_task=self.spec.data.task is not None)
        for name in ("val_loss", "train_loss"):
            if not math.isfinite(found[name]):
                raise TrainingDiverged(f"{name} is {found[name]} after step {self.progress.step}; {_ADVICE}")
        if not record:
            return found
        with deferred():  # recorded once
            self.progress.owes_evaluation = False
            self.sink.metrics(
                {
                    "kind": "eval",
                    "step": self.progress.step,
                    "stage": stage,
                    "seconds": self.progress.seconds,
                    "flops": self._flops_after(self.progress.step),
                    **found,
                    "loss_by_position": val["loss_by_position"],
                    **lists,
                    "eval_seconds": time.perf_counter() - start,
                }
            )
        return found

    def _is_time_to_save(self) -> bool:
        """A checkpoint of a small model takes as long as a hundred of its steps: not worth it every few seconds."""
        asked = self.spec.engine.checkpoint_every is not None
        return asked or self.ranks.same(time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS)

    def _checkpoint(self) -> None:
        self.saved_at = time.monotonic()
        self.sink.replace_checkpoint(lambda folder: checkpoint.save(folder, self.model, self.optimizer, self.progress))
        self.saved_step = self.progress.step

    def _flops_after(self, steps: int) -> float:
        """Model FLOPs of the run's first `steps` steps, by the stage that each is in."""
        dense = min(steps, self.change)
        return self.spec.batch_size * (dense * self.flops["dense"] + (steps - dense) * self.flops["sparse"])

    def _summary(self) -> dict[str, Any]:
        spec, steps, windows = self.spec, self.spec.train.steps, self.spec.batch_size
        last: Stage = stage_at(spec, steps - 1)
        step_ms = self.times.step_ms(last)
        own = sum(p.numel() for p in self.optimizer.own)
        rate = matmul_rate(self.execution.device, self.execution.precision)
        return {
            "steps": steps,
            "params": sum(p.numel() for p in self.optimizer.backbone) + own,
            "indexer_params": own,
            "vocab_size": self.data.vocab_size,
            "batch_size": windows,
            "tokens_per_step": spec.tokens_per_step,
            "tokens": spec.tokens_per_step * steps,
            "flops": self._flops_after(steps),
            **self.last_eval,
            "step_ms": step_ms,
            "warmup_step_ms": self.times.step_ms("dense"),
            "tokens_per_second": None if step_ms is None else spec.tokens_per_step / step_ms * 1e3,
            "train_seconds": self.progress.seconds,
            "mfu": None if step_ms is None else windows * self.flops[last] / (step_ms / 1e3) / (rate * self.ranks.size),
            "matmul_flops_per_second": rate,
            "peak_memory_mb": self.progress.peak_memory_mb,
            "compile": self.slot.running.compile,
            "attention_backend": backend(spec, self.execution),
            "micro_batch": self.step.micro_batch,
            "recompute": self.step.recompute,
        }
