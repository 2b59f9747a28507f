"""Attribution of a traced step's time to parts, on traces written by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dsabench.engine.profiling.attribution import split
from dsabench.engine.profiling.trace import EAGER, REPLAY, kernels, read, timeline
from dsabench.ops.profile_labels import PREFIX

# Traces written by hand: what a GPU would leave


class Trace:
    """A trace in the making; times in microseconds."""

    MAIN, ENGINE = 100, 200

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.correlation = 0
        self.clock = 0.0

    def host(self, cat: str, name: str, start: float, dur: float, tid: int = MAIN, **args: Any) -> None:
        event = {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start, "dur": dur, "args": args}
        self.events.append(event)

    def kernel(self, name: str, at: float, dur: float, cat: str = "kernel", **args: Any) -> None:
        event = {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": 7, "ts": at, "dur": dur, "args": args}
        self.events.append(event)

    def launch(self, name: str, at: float, runs: float, dur: float, tid: int = MAIN, triton: bool = False) -> None:
        self.correlation += 1
        cat, call = ("cuda_driver", "cuLaunchKernelEx") if triton else ("cuda_runtime", "cudaLaunchKernel")
        self.host(cat, call, at, 1, tid, correlation=self.correlation)
        self.kernel(name, runs, dur, correlation=self.correlation)

    def eager_step(self, at: float) -> None:
        """100 us on the host: an embedding, an indexer in Triton, their backward pass on autograd's thread, AdamW."""
        number = int(at)
        self.host("user_annotation", EAGER, at, 100)
        self.host("user_annotation", PREFIX + "rest of the model", at + 1, 40)
        self.host("cpu_op", "aten::embedding", at + 2, 10, **{"Sequence number": number})
        self.launch("gather", at + 3, at + 10, 5)
        # It makes no node, so it sees the number that the indexer's node then gets.
        self.host("cpu_op", "aten::arange", at + 15, 2, **{"Sequence number": number + 1})
        self.host("user_annotation", PREFIX + "indexer", at + 20, 20)
        self.host("cpu_op", "Combine", at + 24, 10, **{"Sequence number": number + 1})
        self.launch("_combine", at + 26, at + 30, 10, triton=True)
        backward = "autograd::engine::evaluate_function: "
        self.host(
            "cpu_op", f"{backward}CombineBackward", at + 50, 10, self.ENGINE,
            **{"Sequence number": number + 1, "Fwd thread id": 1},
        )  # fmt: skip
        self.launch("_combine_backward", at + 52, at + 55, 20, self.ENGINE, triton=True)
        self.host("cpu_op", f"{backward}torch::autograd::AccumulateGrad", at + 61, 4, self.ENGINE)
        self.launch("add", at + 62, at + 76, 2, self.ENGINE)
        self.host(
            "cpu_op", f"{backward}EmbeddingBackward0", at + 66, 6, self.ENGINE,
            **{"Sequence number": number, "Fwd thread id": 1},
        )  # fmt: skip
        self.launch("scatter", at + 68, at + 80, 4, self.ENGINE)
        self.host("user_annotation", PREFIX + "optimizer", at + 80, 10)
        self.launch("adamw", at + 82, at + 86, 6)
        self.launch("history", at + 95, at + 97, 1)

    def replays(self, at: float, names: list[tuple[str, float]], count: int = 2, gap: float = 5) -> None:
        """Graph launches, each kernel at once after the one before, and `gap` between two replays."""
        self.host("user_annotation", REPLAY, at, 10)
        clock = at + 20
        for i in range(count):
            self.correlation += 1
            self.host("cuda_runtime", "cudaGraphLaunch", at + 1 + i, 0.5, correlation=self.correlation)
            for name, dur in names:
                self.kernel(name, clock, dur, correlation=self.correlation)
                clock += dur
            clock += gap


BODY = [("gather", 4.0), ("_combine", 8.0), ("_combine_backward", 16.0), ("add", 1.0), ("scatter", 3.0), ("adamw", 5.0)]


def test_kernels_belong_to_whoever_launched_them() -> None:
    trace = Trace()
    trace.eager_step(1000)
    found = {kernel.name: (kernel.part, kernel.backward) for kernel in kernels(trace.events, timeline(trace.events))}
    assert found == {
        "gather": ("rest of the model", False),
        "_combine": ("indexer", False),
        "_combine_backward": ("indexer", True),
        "add": ("indexer", True),
        "scatter": ("rest of the model", True),
        "adamw": ("optimizer", False),
        "history": ("other", False),
    }


def test_a_call_on_a_thread_without_operations_is_found_by_the_profilers_own_link() -> None:
    trace = Trace()
    trace.host("user_annotation", PREFIX + "experts", 0, 20)
    trace.host("cpu_op", "aten::mm", 1, 10, **{"External id": 9})
    trace.host("cuda_runtime", "cudaLaunchKernel", 3, 1, 999, correlation=1)
    trace.kernel("gemm", 5, 10, correlation=1, **{"External id": 9})
    assert [kernel.part for kernel in kernels(trace.events, timeline(trace.events))] == ["experts"]


def test_recomputed_operations_do_not_take_the_numbers_of_the_forward_pass() -> None:
    trace = Trace()
    trace.eager_step(1000)
    # On autograd's thread numbers start anew: one collides with the embedding's.
    trace.host("user_annotation", PREFIX + "experts", 1057, 2, trace.ENGINE)
    trace.host("cpu_op", "aten::mm", 1057.5, 1, trace.ENGINE, **{"Sequence number": 1000})
    found = {kernel.name: kernel.part for kernel in kernels(trace.events, timeline(trace.events))}
    assert found["scatter"] == "rest of the model"


def test_eager_kernels_without_a_graph() -> None:
    trace = Trace()
    for at in (1000, 1100):
        trace.eager_step(at)
    found = split(trace.events)
    assert found.source == "eager kernels"
    assert found.kernels == 7
    assert found.wall_ms == pytest.approx((1198 - 1000) / 2 / 1e3)
    assert found.busy_ms == pytest.approx((5 + 10 + 20 + 2 + 4 + 6 + 1) / 1e3)
    assert found.busy_share == pytest.approx(2 * 48 / 198)
    assert found.parts["indexer"] == pytest.approx(2 * 32 / 198)
    assert found.backward["indexer"] == pytest.approx(2 * 22 / 198)


def test_replayed_kernels_take_their_part_from_the_eager_one_at_their_place() -> None:
    trace = Trace()
    trace.eager_step(1000)
    trace.replays(2000, BODY)
    found = split(trace.events)
    assert found.source == "replayed kernels"
    assert found.recognised == 1
    assert found.kernels == 6
    wall = 37 + 5 + 37
    assert found.wall_ms == pytest.approx(wall / 2 / 1e3)
    assert found.busy_share == pytest.approx(74 / wall)
    expected = {"rest of the model": 14, "indexer": 50, "optimizer": 10}
    assert found.parts == pytest.approx({name: time / wall for name, time in expected.items()})
    assert found.backward == pytest.approx({"rest of the model": 6 / wall, "indexer": 34 / wall, "optimizer": 0})


def test_the_same_kernel_in_two_parts_is_told_apart_by_its_place() -> None:
    trace = Trace()
    trace.host("user_annotation", EAGER, 0, 100)
    for i, name in enumerate(("attention", "experts", "attention")):
        trace.host("user_annotation", PREFIX + name, 10 * i, 8)
        trace.host("cpu_op", "aten::mm", 10 * i + 1, 6)
        trace.launch("gemm", 10 * i + 2, 10 * i + 3, 1)
    trace.replays(1000, [("gemm", 1.0), ("gemm", 30.0), ("gemm", 9.0)], gap=0)
    assert split(trace.events).parts == pytest.approx({"attention": 0.25, "experts": 0.75})


def test_a_copy_that_the_driver_replays_by_a_kernel_is_the_copy() -> None:
    trace = Trace()
    trace.host("user_annotation", EAGER, 0, 100)
    for i, (where, name) in enumerate([("attention", "gpu_memcpy"), ("experts", "gpu_memset"), ("attention", "gemm")]):
        trace.host("user_annotation", PREFIX + where, 10 * i, 8)
        trace.host("cpu_op", "aten::copy_", 10 * i + 1, 6)
        trace.launch(name, 10 * i + 2, 10 * i + 3, 1)
    trace.replays(1000, [("memcpy32_post", 1.0), ("memset32", 3.0), ("gemm", 6.0)], gap=0)
    found = split(trace.events)
    assert found.recognised == 1
    assert found.parts == pytest.approx({"attention": 0.7, "experts": 0.3})


def test_an_unknown_kernel_in_a_replay_is_other_and_said() -> None:
    trace = Trace()
    trace.eager_step(1000)
    trace.replays(2000, [*BODY[:2], ("memset", 2.0), *BODY[2:]], gap=0)
    found = split(trace.events)
    assert found.source == "replayed kernels"
    assert found.recognised == pytest.approx(37 / 39)
    assert found.parts["other"] == pytest.approx(2 / 39)
    assert found.parts["indexer"] == pytest.approx(25 / 39)


def test_a_replay_of_other_kernels_is_split_as_the_eager_steps_are() -> None:
    trace = Trace()
    trace.eager_step(1000)
    trace.replays(2000, [("something else", 30.0), *BODY], gap=0)
    found = split(trace.events)
    assert found.source == "eager kernels"
    assert found.recognised == pytest.approx(37 / 67)
    assert found.busy_share == 1  # of the replays
    assert found.parts["indexer"] == pytest.approx(32 / 48)
    assert sum(found.parts.values()) == pytest.approx(1)


def test_kernels_that_overlap_are_not_counted_twice_as_busy() -> None:
    trace = Trace()
    trace.host("user_annotation", EAGER, 0, 100)
    for i, name in enumerate(("attention", "experts")):
        trace.host("user_annotation", PREFIX + name, 10 * i, 8)
        trace.launch(f"kernel {name}", 10 * i + 2, 20 + 10 * i, 20)
    found = split(trace.events)
    assert found.busy_ms == pytest.approx(30 / 1e3)
    assert found.parts == pytest.approx({"attention": 0.3, "experts": 0.3})  # of 50 us


def test_without_kernels_an_operation_counts_for_what_it_does_itself() -> None:
    trace = Trace()
    trace.host("user_annotation", EAGER, 0, 100)
    trace.host("user_annotation", PREFIX + "attention", 10, 60)
    trace.host("cpu_op", "Outer", 20, 40)
    trace.host("user_annotation", PREFIX + "experts", 25, 30)
    trace.host("cpu_op", "aten::mm", 30, 24)
    trace.host("cpu_op", "aten::empty", 31, 4)
    found = split(trace.events)
    assert found.source == "operators"
    assert found.wall_ms == pytest.approx(0.1)
    assert found.busy_share == pytest.approx(0.4)
    assert found.parts == pytest.approx({"attention": 0.16, "experts": 0.24})


def test_a_trace_is_read_as_the_profiler_writes_it(tmp_path: Path) -> None:
    trace = Trace()
    trace.eager_step(0)
    path = tmp_path / "trace.json.gz"
    other = [{"ph": "M", "name": "process_name"}, {"ph": "s", "cat": "fwdbwd", "name": "fwdbwd", "ts": 1, "id": 1}]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump({"traceEvents": [*other, *trace.events]}, file)
    assert read(path) == trace.events
