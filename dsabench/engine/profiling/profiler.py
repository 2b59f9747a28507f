"""The profiler: it runs the steps of a case as the engine does, times them, and traces them.

All cases are timed before the first is traced: a profiler that was once on may leave its hooks in the driver.

Legend: S steps, B batch, T time.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch.profiler import ProfilerActivity, profile, record_function

from dsabench import data as data_package
from dsabench.data import TaskData, TokenData, cut
from dsabench.engine.device import Execution, matmul_rate
from dsabench.engine.profiling.attribution import Split, split
from dsabench.engine.profiling.result import ITEMS, Case, Profile, Timing, put_together
from dsabench.engine.profiling.trace import EAGER, REPLAY, read
from dsabench.engine.slot import Memory, Slots
from dsabench.engine.staged_batches import Staged, staged
from dsabench.engine.step import EAGER_STEPS
from dsabench.errors import DeviceError
from dsabench.model.transformer import flops_per_window
from dsabench.ops.profile_labels import Part, named

BLOCKS = 10
"""Blocks that the timed steps are cut into; each is timed by itself."""

_TRACED_EAGER, _TRACED_REPLAYS = 3, 10


def profile_cases(
    cases: Sequence[Case],
    folder: Path,
    execution: Execution,
    steps: int | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> list[Profile]:
    """Time every case over `steps` steps (None: 300 on a GPU, 30 on a CPU), then trace each into `folder`.

    Raises DataError when a length does not fit the data, DeviceError on a device that cannot be profiled.
    """
    if execution.device.type not in ("cpu", "cuda"):
        raise DeviceError(f"profile works on cpu and cuda, and the device is {execution.device}; use --device cpu")
    if steps is None:
        steps = 300 if execution.device.type == "cuda" else 30
    prepared = [data_package.prepare(case.spec.data, progress=notify) for case in cases]
    for data, case in zip(prepared, cases, strict=True):
        cut(data, case.spec.length)  # before the first case takes its time
    rate = matmul_rate(execution.device, execution.precision)
    timings = []
    for i, (case, data) in enumerate(zip(cases, prepared, strict=True), 1):
        notify(f"[{i}/{len(cases)}] {case.name}: timing {steps} steps")
        timings.append(time_steps(case, data, execution, steps))
    profiles = []
    for i, (case, data, timing) in enumerate(zip(cases, prepared, timings, strict=True), 1):
        notify(f"[{i}/{len(cases)}] {case.name}: tracing")
        path = folder / case.name / "trace.json.gz"
        found = trace_steps(case, data, execution, path)
        profiles.append(put_together(case, timing, found, rate, path))
    return profiles


class _Bench:
    """A case's model and its steps on real batches, warmed up and captured as the engine would."""

    def __init__(self, case: Case, data: TokenData | TaskData, execution: Execution) -> None:
        self.spec, self.stage = case.spec, case.stage
        self.windows = cut(data, case.spec.length)
        self.slot = Slots().take(case.spec, data.vocab_size, execution)
        self.slot.begin(case.spec)
        self.taken = 0
        with self.slot.active():
            memory = Memory(self.slot)
            self.run(self.batches(EAGER_STEPS))
            self.slot.wait()
            self.eager_peak_mb = memory.peak_mb()
            if execution.graph:
                self.slot.capture(self.stage)
                self.run(self.batches(EAGER_STEPS))
                self.slot.wait()

    def batches(self, steps: int) -> Staged:
        """The next batches of the run."""
        spec, first = self.spec, self.taken
        self.taken += steps
        last = max(self.taken, spec.train.steps)
        batches = [self.windows.batch(spec.seed, step, spec.batch_size, last) for step in range(first, self.taken)]
        return staged(batches, self.slot.execution.device)

    def run(self, batches: Staged) -> None:
        """Train on them."""
        self.slot.step.run(self.taken - len(batches.tokens_SBT), self.stage, *batches)


def time_steps(case: Case, data: TokenData | TaskData, execution: Execution, steps: int) -> Timing:
    """Wall time of `steps` steps in blocks, with nothing else going on; the first steps and the capture excluded."""
    bench = _Bench(case, data, execution)
    slot, blocks = bench.slot, min(BLOCKS, steps)
    size = steps // blocks
    times = []
    with slot.active():
        memory = Memory(slot)
        for _ in range(blocks):
            batches = bench.batches(size)
            execution.synchronize()
            start = time.perf_counter()
            bench.run(batches)
            slot.wait()
            times.append(1e3 * (time.perf_counter() - start) / size)
        # A replay allocates nothing: as in a run, the eager steps before it count.
        peaks = [peak for peak in (bench.eager_peak_mb, memory.peak_mb()) if peak is not None]
    flops: dict[Part, float] = {}
    for item, value in flops_per_window(slot.model, case.stage).items():
        part = ITEMS.get(item, "attention")
        flops[part] = flops.get(part, 0.0) + value * case.spec.batch_size
    low, middle, high = (float(value) for value in np.percentile(times, [20, 50, 80]))
    return Timing(
        middle, low, high, blocks, size, max(peaks, default=None), slot.step.micro_batch, slot.step.recompute,
        slot.running, flops,
    )  # fmt: skip


def trace_steps(case: Case, data: TokenData | TaskData, execution: Execution, path: Path) -> Split:
    """Trace eager steps, whose operations name the parts, and replays where the engine captures; written to `path`.

    Raises DeviceError when the profiler sees no kernel of a GPU.
    """
    bench = _Bench(case, data, execution)
    on_gpu = execution.device.type == "cuda"
    if execution.graph:  # as torch.profiler does for its own graphs: CUPTI must not go and come back between them
        os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
        os.environ.setdefault("TEARDOWN_CUPTI", "0")
    step = bench.slot.step
    graphs = dict(step.graphs)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with bench.slot.active(), profile(activities=activities, acc_events=True) as profiler:
        step.graphs.clear()
        with named():
            for i in range(_TRACED_EAGER + 1):
                batches = bench.batches(1)
                # The first step after the profiler's start is slower, and is not counted.
                with record_function(EAGER) if i else contextlib.nullcontext():
                    bench.run(batches)
                    if not graphs:
                        bench.slot.wait()
        bench.slot.wait()
        if graphs:
            step.graphs.update(graphs)
            batches = bench.batches(_TRACED_REPLAYS)
            with record_function(REPLAY):
                bench.run(batches)
            bench.slot.wait()
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    path.write_bytes(gzip.compress(plain.read_bytes(), 6))  # PyTorch does it line by line, several times as slowly
    plain.unlink()
    found = split(read(path))
    if on_gpu and found.source == "operators":
        raise DeviceError(
            f"the profiler recorded no kernel on {execution.device}: CUPTI is missing, or this user may not use it "
            "(NVIDIA: ERR_NVGPUCTRPERM)"
        )
    return found
