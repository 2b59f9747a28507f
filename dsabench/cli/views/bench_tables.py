"""A bench's tables on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from dsabench.cli.views.text_table import Cell as TableCell
from dsabench.cli.views.text_table import Column, footnote_lines, print_table, say

if TYPE_CHECKING:
    from dsabench.bench.document import Cell, Document, Measured, Part

_COLUMNS = (
    Column("L"),
    Column("implementation", left=True, shorten="number", least=16),
    Column("ms"),
    Column("p20-p80", drop=1),
    Column("forward ms", short="fwd", drop=3),
    Column("backward ms", short="bwd", drop=3),
    Column("TFLOP/s", drop=2),
    Column("% of roof", short="% of\nroof", drop=2),
    Column("peak MB", short="peak\nMB"),
    Column("speed-up", short="speed\nup"),
)
_PARTS = (
    Column("L"),
    Column("part", left=True, shorten="number", least=16),
    Column("ms"),
    Column("p20-p80", drop=1),
    Column("TFLOP/s", drop=2),
    Column("% of roof", short="% of\nroof", drop=2),
    Column("gathers GB/s", short="gathers\nGB/s", drop=3),
)

_NEIGHBOURS = (2, 4, 8, 16)
_UNIONS = (Column("L"), Column("selections", left=True), *(Column(f"{n} queries") for n in _NEIGHBOURS))


def bench_lines(document: Document, console: Console) -> None:
    """Print the table of implementations, that of the parts, the crossovers, and what did not run."""
    say(console, *_head(document), "")
    footnotes: dict[str, int] = {}
    shown = [cell for cell in document.cells if cell.status != "skipped"]
    print_table(console, _COLUMNS, _rows(shown, footnotes), footnotes=footnotes)
    if document.parts:
        say(console, "", "Parts of dsa-triton, each by itself:", "")
        print_table(console, _PARTS, _part_rows(document, footnotes), footnotes=footnotes)
    if document.unions:
        say(console, "", "Different keys that neighbouring queries select, over the keys of one (union / k):", "")
        print_table(console, _UNIONS, _union_rows(document))
    say(console, "", *footnote_lines(footnotes), *(f"crossover: {one.words}" for one in document.crossovers))
    say(
        console,
        *_checked(document),
        *_skipped(document),
        *_too_large(document),
        *(f"note: {note}" for note in document.notes),
        *_legend(document),
    )


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


def _rows(cells: Sequence[Cell], footnotes: dict[str, int]) -> Iterator[tuple[str | TableCell, ...]]:
    previous = None
    for cell in cells:
        name = cell.implementation + _whose(cell)
        length = "" if cell.length == previous else f"{cell.length}"
        previous = cell.length
        if cell.ms is None:
            status = _status(cell.status, cell.reason, footnotes)
            yield length, name, TableCell(status, "red"), "", "", "", "", "", "", ""
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


def _whose(timed: Cell | Part) -> str:
    """The stage or the layer of a time, where it is not the usual one."""
    if timed.layer is not None:
        return f", layer {timed.layer}"
    return " (warm-up)" if timed.stage == "dense" else ""


def _union_rows(document: Document) -> Iterator[tuple[str, ...]]:
    """A row a length and layer; random selections first."""
    found: dict[tuple[int, int | None], dict[int, float]] = {}
    for one in document.unions:
        found.setdefault((one.length, one.layer), {})[one.queries] = one.keys_over_k
    previous = None
    for (length, layer), of in found.items():
        shown = (f"{of[n]:.2f}" if n in of else "-" for n in _NEIGHBOURS)
        yield "" if length == previous else str(length), "random" if layer is None else f"layer {layer}", *shown
        previous = length


def _part_rows(document: Document, footnotes: dict[str, int]) -> Iterator[tuple[str, ...]]:
    previous = None
    for part in document.parts:
        name = part.part + _whose(part)
        length = "" if part.length == previous else f"{part.length}"
        previous = part.length
        if part.ms is None:
            yield length, name, _status(part.status, part.reason, footnotes), "", "", "", ""
            continue
        gathered = _digits(part.gathered_bytes / part.ms / 1e6) if part.gathered_bytes else "-"
        rate, share = _digits(part.tflops_per_second), _percent(part.roofline_share)
        yield length, name, _digits(part.ms), _range(part), rate, share, gathered


def _status(status: str, reason: str | None, footnotes: dict[str, int]) -> str:
    """The text in place of a time, with its reason as a footnote; cells of one reason share the footnote."""
    if reason is None or status == "out of memory":  # `_too_large` gives its reason
        return status
    return f"{status} [{footnotes.setdefault(reason, len(footnotes) + 1)}]"


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
    yield "ms: median; p20-p80: of the repetitions; forward, backward (fwd, bwd): its parts."
    yield "TFLOP/s: of what the method needs."
    yield "% of roof: max(FLOPs / rate, fewest bytes / copy rate) over the time, both rates as measured above."
    if document.unions:
        yield "layer N: with what this layer of the run selects; rows without one: random inputs."
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
