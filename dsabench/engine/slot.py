"""Slots: the model, optimizer, captured graphs and CUDA stream that runs of one shape use one after another.

Two runs of one shape differ only in their seed. The second one copies its initial weights into the first one's model
and replays its graphs; nothing is constructed, warmed up or captured again.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dsabench import ops
from dsabench.attention.base import Stage
from dsabench.engine import memory_plan
from dsabench.engine.device import Execution, determinism, first_line
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.memory_plan import MemoryPlan
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.step import TrainStep
from dsabench.model.transformer import Transformer, build
from dsabench.spec.run import RunSpec


class Slot:
    """A place on the device where one run at a time is trained."""

    def __init__(self, spec: RunSpec, vocab_size: int, execution: Execution, plan: MemoryPlan, number: int = 0) -> None:
        """number: of the stream of its device that the slot works on."""
        self.shape, self.vocab_size, self.execution, self.number = shape_of(spec), vocab_size, execution, number
        self.peak_memory_mb: float | None = None
        """Largest memory of any step so far. A run that only replays graphs allocates nothing, and has this peak."""
        self.used = False
        self.eager_because: str | None = None
        """Why the step could not be captured; None where it could."""
        with self.active():
            self.model: Transformer = build(spec, vocab_size).to(execution.device)
            self.optimizer = Optimizer(self.model, spec, execution.device)
            self.step = TrainStep(self.model, self.optimizer, spec, execution, plan.micro_batch, plan.recompute)
            self.evaluator = Evaluator(self.model, execution, self.step.pool)

    def fits(self, spec: RunSpec, vocab_size: int, execution: Execution) -> bool:
        """Whether the slot was made for runs like this one, of any seed."""
        return (self.shape, self.vocab_size, self.execution) == (shape_of(spec), vocab_size, execution)

    def begin(self, spec: RunSpec) -> None:
        """Bring weights, buffers and optimizer to their state at the start of this run."""
        if self.used:
            with self.active(), torch.no_grad():
                fresh = build(spec, self.vocab_size)
                for own, initial in (
                    (self.model.parameters(), fresh.parameters()),
                    (self.model.buffers(), fresh.buffers()),
                ):
                    for tensor, value in zip(own, initial, strict=True):
                        tensor.copy_(value)
                self.optimizer.restart()
            self.step.begin(spec)
        self.used = True

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The slot's stream, kernels and determinism while inside. All that a run does on the device is done inside."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(determinism(self.execution))
            stack.enter_context(ops.unfused(not self.execution.fused))
            if self.execution.device.type == "cuda":
                stack.enter_context(torch.cuda.stream(_stream(self.execution.device, self.number)))
            yield

    def wait(self) -> None:
        """Wait for this slot's work on the device, and for no other slot's."""
        if self.execution.device.type == "cuda":
            _stream(self.execution.device, self.number).synchronize()
        else:
            self.execution.synchronize()

    @property
    def running(self) -> Execution:
        """The execution as it is in fact: without graphs if a capture failed."""
        return self.execution if self.eager_because is None else replace(self.execution, graph=False)

    def capture(self, stage: Stage) -> None:
        """Capture the stage's step. If that fails on any rank, warn, and go on without graphs on all of them."""
        reason = None
        try:
            self.step.capture(stage)
        except RuntimeError as error:
            reason = first_line(error)
        reason = self.execution.ranks.first_of(reason)
        if reason is not None:
            self.step.graphs.pop(stage, None)
            self.eager_because = reason
            warnings.warn(
                f"the training step cannot be captured in a CUDA graph, so training is slower: {self.eager_because} "
                "(engine.compile = off silences this)",
                stacklevel=2,
            )

    def own_bytes(self) -> int:
        """Bytes of the tensors that the slot keeps between steps."""
        kept: list[Tensor] = [*self.model.parameters(), *self.model.buffers(), *self.step.weights.narrow.values()]
        kept += [p.grad for p in self.model.parameters() if p.grad is not None]
        kept += [value for _, value in self.optimizer.state()]
        kept += [self.step.batches_SBT, self.step.history_SM]
        kept += [x for x in (self.step.scored_SBT, self.step.documents_SBT) if x is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


class Memory:
    """The largest memory of a slot from the making of this object to `peak_mb`, in MB (10^6).

    On CUDA: what the slot keeps and has allocated since, without other slots. On a Linux CPU: the resident size of the
    whole process. None elsewhere.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot, self.execution = slot, slot.execution
        self.others = 0
        if self.execution.device.type == "cuda":
            self.others = torch.cuda.memory_allocated(self.execution.device) - slot.own_bytes()
        self.execution.reset_peak_memory()

    def peak_mb(self) -> float | None:
        """The largest memory since then."""
        peak = self.execution.peak_memory_mb()
        if peak is None or self.execution.device.type != "cuda":
            return peak
        self.slot.peak_memory_mb = max(self.slot.peak_memory_mb or 0.0, peak - self.others / 1e6)
        return self.slot.peak_memory_mb


class Slots:
    """The slots of one process; at most `count` runs at a time."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.free: list[Slot | int] = list(range(count))
        """Slots that no run uses, and the numbers of slots that are yet to be made."""

    def take(self, spec: RunSpec, vocab_size: int, execution: Execution) -> Slot:
        """A slot for the run: a free one of its shape, else a new one, for which a free one of another shape may go.

        Raises DeviceError when the run does not fit.
        """
        plan = execution.ranks.same(memory_plan.plan(spec, vocab_size, execution, share=1 / self.count))
        fitting = [slot for slot in self.free if isinstance(slot, Slot) and slot.fits(spec, vocab_size, execution)]
        chosen = fitting[0] if fitting else min(self.free, key=lambda slot: isinstance(slot, Slot))
        self.free.remove(chosen)
        if fitting and isinstance(chosen, Slot):
            return chosen
        number = chosen.number if isinstance(chosen, Slot) else chosen
        del chosen  # its memory is needed
        return Slot(spec, vocab_size, execution, plan, number)

    def give(self, slot: Slot) -> None:
        """Free the slot of a run that is done; the next run of its shape uses it."""
        self.free.append(slot)

    def drop(self, slot: Slot) -> None:
        """Drop the slot of a run that failed; only its number is used again."""
        self.free.append(slot.number)


def shape_of(spec: RunSpec) -> RunSpec:
    """The spec without its seed. Two runs that agree in it can use one slot."""
    return spec.model_copy(update={"seed": 0})


_streams: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Stream `number` of a device, the same for all runs of a process. PyTorch keeps cuBLAS workspaces for every stream
    that was ever used (64 MiB each on an H100), so there are only as many streams as runs at a time."""
    if (device, number) not in _streams:
        _streams[device, number] = stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):  # makes the workspace, which is then not counted as a run's memory
            for dtype in (torch.bfloat16, torch.float32):
                one = torch.ones(64, 64, device=device, dtype=dtype, requires_grad=True)
                (one @ one).sum().backward()  # autograd's thread has a workspace of its own
    return _streams[device, number]
