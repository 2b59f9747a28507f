"""`dsabench bench` on a GPU: everything runs, is right, and its times are the device's."""

from __future__ import annotations

import pytest
import torch

from dsabench.bench.api import bench_layer
from dsabench.bench.document import Document
from dsabench.bench.timing import Stopwatch

pytestmark = [
    pytest.mark.gpu_alone,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # torch.compile warns of what is no concern here
]


@pytest.fixture(scope="module")
def document() -> Document:
    more = ["dense-flex", "dsa-triton-single"]
    return bench_layer(lengths=[1024, 2048], top_k=256, stage="both", methods=more, repeats=5, device="cuda")


def test_all_is_right_and_timed_but_for_backends_that_pytorch_lacks(document: Document) -> None:
    assert [check for check in document.checks if check.status not in ("timed", "skipped")] == []
    assert [cell for cell in document.cells if cell.status not in ("timed", "skipped")] == []
    skipped = {cell.implementation for cell in document.cells if cell.status == "skipped" and cell.stage == "sparse"}
    assert skipped <= {"dense-cudnn", "dense-cudnn-gqa", "dense-flash-gqa"}
    for cell in document.cells:
        if cell.status == "timed":
            assert cell.peak_memory_mb is not None and cell.peak_memory_mb > 0
            assert cell.roofline_share is not None and 0 < cell.roofline_share <= 1.05


def test_the_parts_are_about_the_whole(document: Document) -> None:
    """By themselves from a cold cache they may take longer than together, but not several times so."""
    for length in (1024, 2048):
        whole = next(
            cell.ms
            for cell in document.cells
            if (cell.implementation, cell.stage, cell.length) == ("dsa-triton", "sparse", length)
        )
        parts = {part.part: part.ms for part in document.parts if (part.stage, part.length) == ("sparse", length)}
        shared = [name for name in parts if name == "unions of neighbours"]  # where neighbours share enough
        assert list(parts) == ["scores + top-k", *shared, "attention forward", "attention backward", "KL loss"]
        assert whole is not None
        assert 0.7 < sum(ms for ms in parts.values() if ms is not None) / whole < 2.0


def test_times_are_the_device_s_and_not_the_host_s() -> None:
    """200 additions of a few microseconds each are queued in more time than they take."""
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.zeros(1024, device=device)

    def launches() -> torch.Tensor:
        for _ in range(200):
            x.add_(1.0)
        return x

    graph = torch.cuda.CUDAGraph()
    launches()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        launches()
    watch = Stopwatch(device)
    graph.replay()
    eager, replayed = (watch.time(run, None, 10).quantile(0.5) for run in (launches, graph.replay))
    assert eager < 2.0 * replayed
