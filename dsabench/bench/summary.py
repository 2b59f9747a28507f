"""The summary of a bench: speed-ups over the fastest dense implementation, crossovers, and notes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dsabench.bench.crossover import crossover
from dsabench.bench.document import Cell, Check, Crossover, Document, Part, Roofline, Settings, UnionSize

RANDOM = "random: q, k, v and index q, k, w are standard normal, so selections are uniformly random"
FASTEST = "the fastest dense"
TRAINED = "dsa-triton (mean of the run's layers)"


def completed(
    settings: Settings, environment: dict[str, Any], about: Mapping[str, Any], rates: Roofline, checks: list[Check],
    cells: Sequence[Cell], parts: Sequence[Part], unions: Sequence[UnionSize],
    families: Mapping[str, str], incomparable: Collection[str],
) -> Document:  # fmt: skip
    """The document of all measurements so far. `incomparable` implementations get neither speed-up nor crossover."""
    fastest = fastest_dense(cells, families)
    cells = [
        cell.model_copy(update={"speed_up": fastest[cell.length] / cell.ms})
        if cell.ms is not None and cell.length in fastest and cell.implementation not in incomparable
        else cell
        for cell in cells
    ]
    return Document(
        environment=environment,
        settings=settings,
        inputs=about["inputs"],
        run_id=about.get("run_id"),
        roofline=rates,
        checks=checks,
        cells=cells,
        parts=list(parts),
        unions=list(unions),
        crossovers=list(_crossovers(cells, fastest, incomparable)),
        notes=[*about.get("notes", []), *_notes(settings, environment, cells, incomparable)],
    )


def fastest_dense(cells: Sequence[Cell], families: Mapping[str, str]) -> dict[int, float]:
    """{length: ms} of the fastest dense implementation at each length."""
    found: dict[int, float] = {}
    for cell in cells:
        if cell.ms is not None and families[cell.implementation] == "dense":
            found[cell.length] = min(cell.ms, found.get(cell.length, cell.ms))
    return found


def layer_means(cells: Sequence[Cell], name: str) -> dict[int, float]:
    """{length: mean over the run's layers of an implementation's ms}, at lengths at which all layers have a time."""
    found: dict[int, list[float | None]] = {}
    for cell in cells:
        if cell.implementation == name and cell.layer is not None:
            found.setdefault(cell.length, []).append(cell.ms)
    return {
        length: sum(ms for ms in times if ms is not None) / len(times)
        for length, times in found.items()
        if None not in times
    }


def _crossovers(
    cells: Sequence[Cell], fastest: Mapping[int, float], incomparable: Collection[str]
) -> Iterator[Crossover]:
    def times(name: str) -> dict[int, float]:
        timed = (cell for cell in cells if (cell.implementation, cell.stage, cell.layer) == (name, "sparse", None))
        return {cell.length: cell.ms for cell in timed if cell.ms is not None and name not in incomparable}

    names = {cell.implementation for cell in cells if cell.stage == "sparse"}
    if "dsa-triton" not in names or not times("dsa-triton"):  # what `skipped` or `failed` says of it is enough
        return
    yield crossover(times("dsa-triton"), fastest, "dsa-triton", FASTEST)
    if trained := {} if "dsa-triton" in incomparable else layer_means(cells, "dsa-triton"):
        yield crossover(trained, fastest, TRAINED, FASTEST)
    if "dsa-masked" in names:
        yield crossover(times("dsa-triton"), times("dsa-masked"), "dsa-triton", "dsa-masked")


def _notes(
    settings: Settings, environment: Mapping[str, Any], cells: Sequence[Cell], incomparable: Collection[str]
) -> Iterator[str]:
    if environment["device"].startswith("cuda"):
        yield "CUDA events; L2 flushed before each repetition; launches queued ahead, as in a CUDA graph."
    else:
        yield "Times are by the wall clock of a CPU, caches as they are; its memory is not measured."
    if settings.heads != settings.kv_heads:
        yield "dense-X: K and V copied to all query heads beforehand, untimed; dense-X-gqa: KV heads shared."
    if any(cell.implementation == "dsa-triton" and cell.ms is not None for cell in cells):
        yield "dsa-triton computes the KL loss's gradients together with the loss: they are in its fwd."
    names = {cell.implementation for cell in cells if cell.ms is not None}
    if "dsa-triton-single" in names:
        yield "dsa-triton-single: each query by itself; what dsa-triton gains on it is what groups of neighbours gain."
    if "dsa-gym" in names:
        yield "dsa-gym: attention-gym, scores, top-k and attention with K = V, which gathers half, and no KL loss."
    if "nsa-fla" in names:
        yield "nsa-fla: flash-linear-attention's NSA, blocks of 64 keys, k in all; another method: not checked."
    if any(length <= settings.top_k for length in settings.lengths):
        yield f"Where L is at most k = {settings.top_k}, a selection is every key."
    if incomparable and os.environ.get("TRITON_INTERPRET") == "1":
        yield "Times of dsa-triton are of Triton's interpreter: they mean nothing but that the kernels ran."
