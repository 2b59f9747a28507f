"""A bench's tables on stdout, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsabench.cli.views.results_table_text import columns

if TYPE_CHECKING:
    from dsabench.bench.document import Cell, Document, Measured

_HEADINGS = ("L", "implementation", "ms", "p20-p80", "fwd", "bwd", "TFLOP/s", "% of\nroof", "peak\nMB", "speed\nup")
_PARTS = ("L", "part", "ms", "p20-p80", "TFLOP/s", "% of\nroof", "gathers\nGB/s")


def bench_lines(document: Document, console: Console) -> None:
    """Print the table of implementations, that of the parts, the crossovers, and what did not run."""
    _print(console, *_head(document), "")
    footnotes: list[str] = []
    shown = [cell for cell in document.cells if cell.status != "skipped"]
    console.print(columns(_HEADINGS, _rows(shown, footnotes), console, left=("implementation",)), crop=False)
    if document.parts:
        _print(console, "", "Parts of dsa-triton, each by itself:", "")
        console.print(columns(_PARTS, _part_rows(document, footnotes), console, left=("part",)), crop=False)
    _print(console, "", *footnotes, *(f"crossover: {one.words}" for one in document.crossovers))
    _print(
        console,
        *_checked(document),
        *_skipped(document),
        *_too_large(document),
        *(f"note: {note}" for note in document.notes),
        *_legend(document),
    )


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _head(document: Document) -> Iterator[str]:
    s, roof = document.settings, document.roofline
    name = document.environment["device_name"]
    fixed = ", deterministic" if s.deterministic else ""
    yield f"One attention layer, forward + backward, on {document.environment['device']} {name} ({s.dtype}{fixed})"
    yield (
        f"  B={s.batch}, H={s.heads} heads on {s.kv_heads} KV, D={s.head_dim}, k={s.top_k}; "
        f"indexer: {s.indexer_heads} heads of {s.indexer_dim}"
    )
    yield f"  inputs: {document.inputs}"
    yield (
        f"  roof: {roof.flops_per_second / 1e12:,.3g} TFLOP/s of a large matrix product, "
        f"{roof.bytes_per_second / 1e9:,.4g} GB/s of a large copy, both measured here"
    )


def _rows(cells: Sequence[Cell], footnotes: list[str]) -> Iterator[tuple[str, ...]]:
    previous = None
    for cell in cells:
        name = cell.implementation + (" (warm-up)" if cell.stage == "dense" else "")
        length = "" if cell.length == previous else f"{cell.length}"
        previous = cell.length
        if cell.ms is None:
            yield length, name, _status(cell.status, cell.reason, footnotes), "", "", "", "", "", "", ""
            continue
        yield (
            length,
            name,
            _digits(cell.ms),
            _range(cell),
            _digits(cell.forward_ms),
            _digits(cell.backward_ms),
            _digits(cell.tflops_per_second),
            _percent(cell.roofline_share),
            "-" if cell.peak_memory_mb is None else f"{cell.peak_memory_mb:.0f}",
            "-" if cell.speed_up is None else f"{cell.speed_up:.2f}",
        )


def _part_rows(document: Document, footnotes: list[str]) -> Iterator[tuple[str, ...]]:
    previous = None
    for part in document.parts:
        name = part.part + (" (warm-up)" if part.stage == "dense" else "")
        length = "" if part.length == previous else f"{part.length}"
        previous = part.length
        if part.ms is None:
            yield length, name, _status(part.status, part.reason, footnotes), "", "", "", ""
            continue
        gathered = _digits(part.gathered_bytes / part.ms / 1e6) if part.gathered_bytes else "-"
        rate, share = _digits(part.tflops_per_second), _percent(part.roofline_share)
        yield length, name, _digits(part.ms), _range(part), rate, share, gathered


def _status(status: str, reason: str | None, footnotes: list[str]) -> str:
    """The text in place of a time, with its reason as a footnote; cells of one reason share the footnote."""
    if reason is None or status == "out of memory":  # `_too_large` gives its reason
        return status
    known = next((i for i, note in enumerate(footnotes, 1) if note == f"[{i}] {reason}"), None)
    if known is None:
        footnotes.append(f"[{len(footnotes) + 1}] {reason}")
        known = len(footnotes)
    return f"{status} [{known}]"


def _skipped(document: Document) -> Iterator[str]:
    """Each implementation that did not run, with the reason; with the lengths, where it ran at others."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for cell in document.cells:
        if cell.status == "skipped":
            found.setdefault((cell.implementation, cell.stage, cell.reason or ""), []).append(cell.length)
    by_reason: dict[str, list[str]] = {}
    for (name, stage, reason), lengths in found.items():
        where = "" if len(lengths) == len(document.settings.lengths) else f" at L={', '.join(map(str, lengths))}"
        by_reason.setdefault(reason, []).append(name + (" (warm-up)" if stage == "dense" else "") + where)
    for reason, names in by_reason.items():
        yield f"skipped: {', '.join(names)}: {reason}."


def _checked(document: Document) -> Iterator[str]:
    """The largest error of the implementations that were timed."""
    right = [check for check in document.checks if check.ok and check.error is not None]
    if right:
        worst = max(right, key=lambda check: check.error or 0.0)
        what = worst.implementation + ("" if worst.worst is None else f", {worst.worst}")
        yield f"checked: against the reference in fp64, the largest relative error is {worst.error:.1e} ({what})."


def _too_large(document: Document) -> Iterator[str]:
    """The first length at which an implementation ran out of memory, and the reason."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in document.cells:
        if cell.status == "out of memory":
            first.setdefault((cell.implementation, cell.stage), cell)
    for cell in first.values():
        name = cell.implementation + (" (warm-up)" if cell.stage == "dense" else "")
        yield f"out of memory: {name} at L={cell.length}: {cell.reason}"


def _legend(document: Document) -> Iterator[str]:
    yield "ms: median; p20-p80: of the repetitions; fwd, bwd: its parts. TFLOP/s: of what the method needs."
    yield "% of roof: max(FLOPs / rate, fewest bytes / copy rate) over the time, both rates as measured above."
    if "dense" in document.settings.stages:
        yield "warm-up: DSA's dense stage, dense attention and the KL loss over all causal keys."
    yield "speed-up: against the fastest dense implementation of this run at the same length."
    if any(part.gathered_bytes for part in document.parts):
        yield "gathers: keys, values and their gradients, touched once for every query that selected them."


def _range(measured: Measured) -> str:
    return f"{_digits(measured.ms_p20)}-{_digits(measured.ms_p80)}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _digits(value: float | None) -> str:
    """Three significant digits down to 0.01, then three decimals."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.{2 if value >= 1 else 3}f}"
