"""A profile's tables on stdout, at most 80 columns wide, and its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from dsabench.cli.views.results_table_text import columns, short_names

if TYPE_CHECKING:
    from dsabench.engine.device import Execution
    from dsabench.engine.profiling.result import Profile

_HEADINGS = ("part", "ms", "% of\nstep", "backward\nms", "GFLOP", "% of\nFLOPs", "% of\nrate")
_SUMMARY = ("case", "ms", "p20-p80", "tokens/s", "MFU %", "busy %", "kernels", "MB")
_LABEL = 22
"""Characters of a case's name in the summary; longer ones are numbered and spelt out below it."""

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
        _print(console, *_head(profile, execution), "")
        console.print(columns(_HEADINGS, _cells(profile), console, left=("part",)), crop=False)
        _print(console, "", *(f"note: {note}" for note in profile.notes), f"trace: {profile.trace}", "")
    if len(profiles) > 1:
        labels, footnotes = short_names([_name(profile) for profile in profiles], _LABEL)
        console.print(columns(_SUMMARY, _summary(profiles, labels), console, left=("case",)), crop=False)
        _print(console, *footnotes, "")
    _print(console, *_legend(profiles))


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


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


def _summary(profiles: Sequence[Profile], labels: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for profile, label in zip(profiles, labels, strict=True):
        yield (
            label,
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
