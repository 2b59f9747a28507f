"""The result of a profile: a case, its step time, and the parts of the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dsabench.attention.base import Stage
from dsabench.engine.backend import backend
from dsabench.engine.device import Execution
from dsabench.engine.profiling.attribution import Source, Split
from dsabench.ops.profile_labels import Part
from dsabench.spec.run import RunSpec

ITEMS: dict[str, Part] = {
    "indexer": "indexer",
    "indexer loss": "indexer loss",
    "router": "experts",
    "experts": "experts",
    "logits": "logits and loss",
    "short convolution": "short convolution",
}
"""Items of flops_per_window by part; all others are the attention's."""


@dataclass(frozen=True)
class Case:
    """A model, a length and a stage to profile."""

    spec: RunSpec
    stage: Stage

    @property
    def name(self) -> str:
        """Names the case's folder too."""
        end = "-dense-stage" if self.stage == "dense" else ""
        return f"{self.spec.attention.kind}-L{self.spec.length}{end}"


def cases_of(specs: Iterable[RunSpec], stage: str) -> list[Case]:
    """Each spec in the `sparse` stage, the `dense` one or `both`; one that has no dense stage is in its only one."""
    cases = []
    for spec in specs:
        stages: tuple[Stage, ...] = ("sparse",)
        if stage != "sparse" and spec.attention.warmup_steps(spec.train.steps):
            stages = ("dense", "sparse") if stage == "both" else ("dense",)
        cases += [Case(spec, one) for one in stages]
    return cases


@dataclass(frozen=True)
class Timing:
    """Steps by the wall clock, without a profiler."""

    step_ms: float
    """Median over blocks."""

    step_ms_p20: float
    step_ms_p80: float
    blocks: int
    steps_per_block: int
    peak_memory_mb: float | None
    micro_batch: int
    recompute: bool
    execution: Execution
    """As it came to be: without graphs when they could not be captured."""

    flops: dict[Part, float]
    """Model FLOPs of a step by part, where flops_per_window has them."""


@dataclass(frozen=True)
class PartTime:
    """One part of a step."""

    part: Part
    ms: float
    share: float
    """Of the step's time."""

    backward_ms: float
    """Of ms, in the backward pass."""

    flops: float | None
    flops_share: float | None
    mfu: float | None
    """Model FLOPs over the part's time and the device's measured matrix-product rate."""


@dataclass(frozen=True)
class Profile:
    """Where one step's time goes: the parts' ms and idle_ms sum to step_ms."""

    attention: str
    length: int
    stage: Stage
    seed: int
    batch_size: int
    tokens_per_step: int
    micro_batch: int
    recompute: bool
    compile: str
    attention_backend: str | None
    """What computed the attention, where it has a choice."""

    step_ms: float
    step_ms_p20: float
    step_ms_p80: float
    blocks: int
    steps_per_block: int
    tokens_per_second: float
    flops_per_step: float
    mfu: float
    peak_memory_mb: float | None
    parts: list[PartTime]
    idle_ms: float
    busy_share: float
    """Share of the traced steps' wall time in which a kernel (on a CPU: an operator) ran."""

    kernel_ms: float | None
    """Time in a traced step during which a kernel ran; over step_ms it is the busy share if tracing cost nothing."""

    traced_step_ms: float
    kernels_per_step: int | None
    durations_from: Source
    recognised_share: float
    """Share of the replayed kernels' time that was found, in the same order, in the eager steps that name the parts."""

    notes: list[str]
    trace: str


def put_together(case: Case, timing: Timing, found: Split, rate: float, path: Path) -> Profile:
    """The untraced step's time shared out as the traced one's was; `rate` is the device's matrix-product rate."""
    spec, step_ms = case.spec, timing.step_ms
    total = sum(timing.flops.values())
    return Profile(
        attention=spec.attention.kind,
        length=spec.length,
        stage=case.stage,
        seed=spec.seed,
        batch_size=spec.batch_size,
        tokens_per_step=spec.tokens_per_step,
        micro_batch=timing.micro_batch,
        recompute=timing.recompute,
        compile=timing.execution.compile,
        attention_backend=backend(spec, timing.execution),
        step_ms=step_ms,
        step_ms_p20=timing.step_ms_p20,
        step_ms_p80=timing.step_ms_p80,
        blocks=timing.blocks,
        steps_per_block=timing.steps_per_block,
        tokens_per_second=1e3 * spec.tokens_per_step / step_ms,
        flops_per_step=total,
        mfu=total / (1e-3 * step_ms * rate),
        peak_memory_mb=timing.peak_memory_mb,
        parts=list(_parts(timing, found, rate)),
        idle_ms=(1.0 - found.busy_share) * step_ms,
        busy_share=found.busy_share,
        kernel_ms=found.busy_ms,
        traced_step_ms=found.wall_ms,
        kernels_per_step=found.kernels,
        durations_from=found.source,
        recognised_share=found.recognised,
        notes=list(_notes(timing, found)),
        trace=str(path),
    )


def _parts(timing: Timing, found: Split, rate: float) -> Iterator[PartTime]:
    """The parts that take time or FLOPs, in the order of a step; `other` always."""
    total = sum(timing.flops.values())
    names: tuple[Part, ...] = get_args(Part)
    for part in names:
        if part in found.parts or part in timing.flops or part == "other":
            share, flops = found.parts.get(part, 0.0), timing.flops.get(part)
            ms = share * timing.step_ms
            yield PartTime(
                part=part,
                ms=ms,
                share=share,
                backward_ms=found.backward.get(part, 0.0) * timing.step_ms,
                flops=flops,
                flops_share=None if flops is None else flops / total,
                mfu=None if flops is None or ms == 0 else flops / (1e-3 * ms * rate),
            )


def _notes(timing: Timing, found: Split) -> Iterator[str]:
    if timing.execution.compiled:
        yield "compiled blocks cannot be split: what they compute is in rest of the model"
    if found.source == "eager kernels" and found.recognised < 1:
        yield (
            f"only {found.recognised:.0%} of the replayed kernels' time has a counterpart in eager steps, so the "
            "parts' shares are those of eager steps"
        )
    elif found.recognised < 1:
        missing = 1 - found.recognised
        yield f"{missing:.1%} of the replayed kernels' time has no counterpart in eager steps and is in other"
    slower = found.wall_ms / timing.step_ms
    if slower > 1.1:
        yield f"tracing made a step {slower:.2f} times as long, which raises idle"
        if found.busy_ms is not None:
            share = found.busy_ms / timing.step_ms
            yield f"kernels ran for {found.busy_ms:.3g} ms of a traced step: {share:.0%} of an untraced one"
