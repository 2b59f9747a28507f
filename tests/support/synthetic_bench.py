"""A document as a GPU would give it, from round numbers: times that are powers of the length."""

from __future__ import annotations

from dsabench.bench.document import Cell, Check, Document, Part, Roofline, Settings
from dsabench.bench.summary import RANDOM, completed

LENGTHS = [4096, 8192, 16384, 32768, 65536, 131072]
FAMILIES = {
    "dense-flash": "dense", "dense-flash-gqa": "dense", "dense-cudnn": "dense", "dense-cudnn-gqa": "dense",
    "dense-efficient": "dense", "dense-math": "dense", "window-flex": "window", "dsa-reference": "dsa",
    "dsa-masked": "dsa", "dsa-triton": "dsa",
}  # fmt: skip
NEED = {"flops": 1e12, "bytes": 1e9, "gathered_bytes": 1e10, "roofline_bound": "flops"}


def times(ms: float) -> dict[str, object]:
    return {
        "ms": ms, "ms_p20": 0.98 * ms, "ms_p80": 1.02 * ms, "repeats": 20, "tflops_per_second": 1e3 / ms,
        "roofline_share": 1.25 / ms,
    }  # fmt: skip


def cell(name: str, length: int, ms: float, stage: str = "sparse") -> Cell:
    about = {"implementation": name, "stage": stage, "length": length, "status": "timed", **NEED}
    halves = {"forward_ms": 0.3 * ms, "backward_ms": 0.7 * ms, "peak_memory_mb": 0.05 * length}
    return Cell.model_validate({**about, **times(ms), **halves})


def without(name: str, length: int, status: str, reason: str, stage: str = "sparse") -> Cell:
    about = {"implementation": name, "stage": stage, "length": length, "status": status, "reason": reason}
    return Cell.model_validate({**about, **NEED})


def document(crossing: bool = True) -> Document:
    """dsa-triton is as fast as the fastest dense one, 70 (L / 65536)^2 ms, at L = 32,768 x 2^0.5, or twice as slow."""
    cells: list[Cell] = []
    for length in LENGTHS:
        share = length / 65536
        quadratic = 70 * share**2
        for name, factor in (
            ("flash", 1.5),
            ("flash-gqa", 1.55),
            ("cudnn", 1.0),
            ("cudnn-gqa", 1.04),
            ("efficient", 2.7),
        ):
            cells.append(cell(f"dense-{name}", length, factor * quadratic))
        if length <= 16384:
            cells.append(cell("dense-math", length, 14 * quadratic))
            cells.append(cell("dsa-masked", length, 9 * quadratic))
        else:
            for name in ("dense-math", "dsa-masked"):
                cells.append(without(name, length, "out of memory", "CUDA out of memory. Tried to allocate 64 GiB"))
        cells.append(without("window-flex", length, "failed", "InductorError: no such kernel"))
        cells.append(without("dsa-reference", length, "WRONG", "d k is off by 3.0e-01 of its size (limit 2e-02)"))
        linear = 70 * 2**-0.5 * share if crossing else 140 * share**2
        cells.append(cell("dsa-triton", length, linear))
        cells.append(cell("dsa-triton", length, 1.7 * quadratic, "dense"))
        cells.append(without("dsa-masked", length, "skipped", "no reason", "dense"))
    part = {"part": "scores + top-k", "stage": "sparse", "length": 65536, "status": "timed", **NEED, **times(9.0)}
    check = Check(
        implementation="dsa-triton", stage="sparse", ok=True, error=1e-3, worst="d k", tolerance=2e-2, status="timed"
    )
    return completed(
        Settings(lengths=LENGTHS, stages=["sparse", "dense"]),
        {"device": "cuda:0", "device_name": "NVIDIA H100 80GB HBM3"},
        {"inputs": RANDOM},
        Roofline(flops_per_second=8e14, bytes_per_second=2.9e12),
        [check],
        cells,
        [Part.model_validate(part)],
        [],
        FAMILIES,
        (),
    )
