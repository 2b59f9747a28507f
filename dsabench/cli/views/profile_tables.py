"""A profile's tables on stdout, and its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dsabench.cli.views.text_table import Column, print_table, say

if TYPE_CHECKING:
    from dsabench.engine.device import Execution
    from dsabench.engine.profiling.result import Profile

_PARTS = (
    Column("part", left=True),
    Column("ms"),
    Column("% of step", short="% of\nstep"),
    Column("backward ms", short="backward\nms", drop=3),
    Column("GFLOP", drop=2),
    Column("% of FLOPs", short="% of\nFLOPs", drop=1),
    Column("% of rate", short="% of\nrate", drop=1),
)
_SUMMARY = (
    Column("case", left=True, shorten="number", least=20),
    Column("ms"),
    Column("p20-p80", drop=2),
    Column("tokens/s", drop=1),
    Column("MFU %"),
    Column("busy %", drop=3),
    Column("kernels", drop=4),
    Column("peak MB", short="MB"),
)

_RAN = {
    "operators": "the operators of traced eager steps",
    "eager kernels": "the GPU kernels of traced eager steps",
    "replayed kernels": "the GPU kernels of traced replays",
}


def profile_document(profiles: Sequence[Profile], execution: Execution) -> dict[str, Any]:
    """The document of `profile --json`."""
    from dsabench.engine.device import environment, matmul_rate

    return {
        "environment": environment(execution),
        "matmul_flops_per_second": matmul_rate(execution.device, execution.precision),
        "cases": [asdict(profile) for profile in profiles],
    }


def profile_lines(profiles: Sequence[Profile], execution: Execution, console: Console) -> None:
    """Print each case's parts, and a summary when there are several cases."""
    for profile in profiles:
        say(console, *_head(profile, execution), "")
        print_table(console, _PARTS, _cells(profile))
        say(console, "", *(f"note: {note}" for note in profile.notes), f"trace: {profile.trace}", "")
    if len(profiles) > 1:
        print_table(console, _SUMMARY, _summary(profiles))
        say(console, "")
    say(console, *_legend(profiles))


def _name(profile: Profile) -> str:
    return f"{profile.attention} L={profile.length}" + (" dense stage" if profile.stage == "dense" else "")


def _head(profile: Profile, execution: Execution) -> Iterator[str]:
    how = {"off": "eager", "graph": "CUDA graph", "full": "compiled, CUDA graph"}[profile.compile]
    exact = ", deterministic" if execution.deterministic and execution.device.type == "cuda" else ""
    yield f"{_name(profile)}  ({execution.device}, {execution.precision}, {how}{exact})"
    cut = "" if profile.micro_batch == profile.batch_size else f", {profile.micro_batch} at a time"
    again = ", blocks recomputed" if profile.recompute else ""
    yield f"  batch   {profile.batch_size} windows = {profile.tokens_per_step:,} tokens{cut}{again}"
    if profile.attention_backend is not None:
        yield f"  backend {profile.attention_backend}"
    spread = f"{_digits(profile.step_ms_p20)} to {_digits(profile.step_ms_p80)}"
    yield f"  step    {_digits(profile.step_ms)} ms, {profile.tokens_per_second:,.0f} tokens/s"
    yield f"          p20 to p80: {spread} ms, {profile.blocks} blocks of {profile.steps_per_block} steps"
    yield (
        f"  FLOPs   {_digits(profile.flops_per_step / 1e9)} GFLOP a step, {profile.mfu:.1%} of the measured "
        "matrix-product rate"
    )
    if profile.peak_memory_mb is not None:
        yield f"  memory  {profile.peak_memory_mb:,.0f} MB at the peak"
    if profile.kernels_per_step is not None:
        yield f"  GPU     busy {profile.busy_share:.1%} of the traced time, {profile.kernels_per_step:,} kernels a step"


def _cells(profile: Profile) -> Iterator[tuple[str, ...]]:
    for part in profile.parts:
        yield (
            part.part,
            _digits(part.ms),
            _percent(part.share),
            _digits(part.backward_ms) if part.backward_ms else "-",
            "-" if part.flops is None else _digits(part.flops / 1e9),
            _percent(part.flops_share),
            _percent(part.mfu),
        )
    yield "idle", _digits(profile.idle_ms), _percent(1 - profile.busy_share), "-", "-", "-", "-"
    backward = sum(part.backward_ms for part in profile.parts)
    gflops = _digits(profile.flops_per_step / 1e9)
    yield "the step", _digits(profile.step_ms), "100.0", _digits(backward), gflops, "100.0", _percent(profile.mfu)


def _summary(profiles: Sequence[Profile]) -> Iterator[tuple[str, ...]]:
    for profile in profiles:
        yield (
            _name(profile),
            _digits(profile.step_ms),
            f"{_digits(profile.step_ms_p20)}-{_digits(profile.step_ms_p80)}",
            f"{profile.tokens_per_second:,.0f}",
            _percent(profile.mfu),
            _percent(profile.busy_share),
            "-" if profile.kernels_per_step is None else f"{profile.kernels_per_step:,}",
            "-" if profile.peak_memory_mb is None else f"{profile.peak_memory_mb:.0f}",
        )


def _legend(profiles: Sequence[Profile]) -> Iterator[str]:
    sources = dict.fromkeys(profile.durations_from for profile in profiles)
    yield f"ms: of an untraced step, shared out by {' or '.join(_RAN[source] for source in sources)}."
    nothing = "operator runs: Python" if "operators" in sources else "kernel runs"
    yield f"other: what no part claims. idle: no {nothing}."
    yield "GFLOP: the model's, active experts only. rate: that of a large matrix product."


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _digits(value: float) -> str:
    """Three significant digits down to 0.01, then three decimals."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.{2 if value >= 1 else 3}f}"
