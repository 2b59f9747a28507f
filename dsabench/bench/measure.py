"""The bench: checks every implementation, times what is right at every length, and puts the document together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dsabench.bench.cases import Case
from dsabench.bench.check import check, run_once, small, wrong_rows
from dsabench.bench.document import Cell, Check, Document, Part, Roofline, Settings, UnionSize
from dsabench.bench.first_use import BenchLaunches
from dsabench.bench.implementations import all_cases, chosen
from dsabench.bench.inputs import Inputs, Source, random_inputs
from dsabench.bench.roofline import Cost
from dsabench.bench.shared_keys import union_sizes
from dsabench.bench.summary import RANDOM, completed
from dsabench.bench.timing import Stopwatch, Times, copy_rate, free_bytes
from dsabench.compilation.ahead import Kernels, compiling
from dsabench.engine.device import Execution, determinism, environment, first_line, matmul_rate
from dsabench.errors import DeviceError

Notify = Callable[[str], None]


def bench(
    settings: Settings,
    execution: Execution,
    source: Source | None = None,
    about: dict[str, Any] | None = None,
    *,
    cases: Callable[[Settings, torch.device], Sequence[Case]] = all_cases,
    notify: Notify = lambda message: None,
    save: Callable[[Document], None] = lambda document: None,
) -> Document:
    """Check and time the layer by every implementation at every length.

    All are timed with random inputs, and DSA also with those that `source` gives for the layers of a run. `about` says
    whose they are: {"inputs": words, "run_id": ..., "layers": [...], "notes": [...]}. `save` is called with what there
    is after each length. An implementation that runs out of memory, fails or is wrong is a cell that says so. Raises
    SpecError for an unknown name, DeviceError for an unknown device.
    """
    if execution.device.type not in ("cpu", "cuda"):
        raise DeviceError(f"bench works on cpu and cuda, and the device is {execution.device}; use --device cpu")
    with determinism(execution), compiling([BenchLaunches(settings)], execution) as kernels:
        return _Bench(settings, execution, source, about, cases, notify, save).run(kernels)


class _Bench:
    def __init__(
        self, settings: Settings, execution: Execution, source: Source | None, about: dict[str, Any] | None,
        cases: Callable[[Settings, torch.device], Sequence[Case]], notify: Notify, save: Callable[[Document], None],
    ) -> None:  # fmt: skip
        self.settings, self.execution, self.device = settings, execution, execution.device
        self.source, self.unions = source, list[UnionSize]()
        self.about = about or {"inputs": RANDOM}
        self.make, self.notify, self.save = cases, notify, save
        self.environment = environment(execution)
        self.dead: str | None = None
        """The error that a device does not recover from, such as an illegal address, and whose it was."""
        self.checks: dict[tuple[str, str], Check] = {}
        self.cells: list[Cell] = []
        self.parts: list[Part] = []
        self.cases = chosen(cases(settings, self.device), settings.only, settings.methods)
        self.incomparable = {case.name for case in self.cases if not case.comparable}

    def run(self, kernels: Kernels) -> Document:
        """Check, then time all lengths, the shortest first. kernels: those that are compiled meanwhile."""
        self.rates = Roofline(
            flops_per_second=matmul_rate(self.device, self.settings.dtype), bytes_per_second=copy_rate(self.device)
        )
        self.watch = Stopwatch(self.device)  # before a check can leave the device dead
        kernels.wait(self.notify)
        self._check_all()
        document = self._document()
        for length in self.settings.lengths:
            x = None if self.dead else random_inputs(self.settings, length, self.device)
            for case in self.cases:
                self._time(case, length, x)
            for layer in (None, *self.about["layers"]) if self.source is not None else ():
                self._time_layer(layer, length, x)
            document = self._document()
            self.save(document)
        return document

    def _time_layer(self, layer: int | None, length: int, x: Inputs | None) -> None:
        """What neighbours share of the selections of one layer, and DSA's times with them. None: of random inputs x,
        which have their times already."""
        assert self.source is not None
        if layer is not None:
            x = None if self.dead else self.source(length, layer)
        if x is not None:
            self.notify(f"L={length}: unions of " + ("random selections" if layer is None else f"layer {layer}"))
            self.unions += union_sizes(x, self.settings, layer)
        for case in self.cases if layer is not None else ():
            if (case.family, case.stage) == ("dsa", "sparse") and case.why_not(length) is None:
                self._time(case, length, x, layer)

    def _document(self) -> Document:
        return completed(
            self.settings, self.environment, self.about, self.rates, list(self.checks.values()),
            self.cells, self.parts, self.unions, {case.name: case.family for case in self.cases}, self.incomparable,
        )  # fmt: skip

    def _check_all(self) -> None:
        """Check every implementation on the small input, before anything is timed."""
        settings = small(self.settings, self.device)
        mine = {(case.name, case.stage) for case in self.cases if self._why_not(case) is None}
        for case in self.make(settings, self.device):
            if (case.name, case.stage) in mine:
                self.notify(f"checking {case.name}" + (" (dense stage)" if case.stage == "dense" else ""))
                self.checks[case.name, case.stage] = check(case, settings, self.device)
                self._tidy(case)
                if self.dead is not None:
                    return

    def _why_not(self, case: Case) -> str | None:
        """The reason why it runs at none of the lengths; None when it runs at some."""
        reasons = [case.why_not(length) for length in self.settings.lengths]
        return None if None in reasons else reasons[0]

    def _time(self, case: Case, length: int, x: Inputs | None, layer: int | None = None) -> None:
        where = {"stage": case.stage, "length": length, "layer": layer}
        about = {"implementation": case.name, **where, **self._need(case.cost(length))}
        if (reason := case.why_not(length)) is not None:
            self.cells.append(Cell(**about, status="skipped", reason=reason))
            return
        if self.dead is not None or x is None:
            self.cells.append(Cell(**about, status="failed", reason=self.dead))
            return
        checked = self.checks[case.name, case.stage]
        if not checked.ok:
            self.cells.append(Cell(**about, status=checked.status, reason=checked.reason))
            return
        if case.scratch_bytes(length) > 0.7 * free_bytes(self.device):
            reason = f"not begun: it takes about {case.scratch_bytes(length) / 1e9:.0f} GB"
            self.cells.append(Cell(**about, status="out of memory", reason=reason))
            return
        of = " (dense stage)" if case.stage == "dense" else "" if layer is None else f", layer {layer}"
        self.notify(f"L={length}: {case.name}{of}")
        status, reason, found = self._guarded(lambda: self._cell(case, length, x))
        self.cells.append(Cell(**about, status=status, reason=reason, **(found or {})))
        if status == "timed":
            self._time_parts(case, where)
        case.release()
        self._tidy(case)

    def _guarded(self, run: Callable[[], dict[str, Any]]) -> tuple[Any, str | None, dict[str, Any] | None]:
        """(status, reason, what run gave): an implementation's error is its own."""
        try:
            found = run()
            wrong = found.pop("wrong", None)
            return ("timed", None, found) if wrong is None else ("WRONG", wrong, None)
        except torch.OutOfMemoryError as error:
            return "out of memory", _how_much(error), None
        except Exception as error:
            if "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error):
                return "out of memory", _how_much(error), None
            return "failed", first_line(error), None

    def _cell(self, case: Case, length: int, x: Inputs) -> dict[str, Any]:
        before = self._in_use()
        results = run_once(case, x)
        wrong = wrong_rows(case, self.settings, x, results)
        del results
        if wrong is not None:
            return {"wrong": wrong}
        peak = None if before is None else self._peak(case)
        times = self.watch.time(case.forward, case.backward, self.settings.repeats)
        forward = Times(times.forward, []).quantile(0.5)
        backward = Times([whole - first for whole, first in zip(*times, strict=True)], []).quantile(0.5)
        return {
            **self._measured(times, case.cost(length)),
            "forward_ms": forward,
            "backward_ms": backward,
            "peak_memory_mb": None if peak is None or before is None else max(peak - before, 0.0),
        }

    def _time_parts(self, case: Case, where: dict[str, Any]) -> None:
        try:
            parts = case.parts()
        except Exception as error:
            self.notify(f"the parts of {case.name} at L={where['length']} are not timed: {first_line(error)}")
            return
        for part in parts:

            def timed(part: Any = part) -> dict[str, Any]:
                part.run()
                return self._measured(self.watch.time(part.run, None, self.settings.repeats), part.cost)

            status, reason, found = self._guarded(timed)
            about = {"part": part.name, **where, **self._need(part.cost)}
            self.parts.append(Part(**about, status=status, reason=reason, **(found or {})))

    def _need(self, cost: Cost) -> dict[str, Any]:
        by_flops = cost.flops / self.rates.flops_per_second >= cost.bytes / self.rates.bytes_per_second
        return {
            "flops": cost.flops,
            "bytes": cost.bytes,
            "gathered_bytes": cost.gathered,
            "roofline_bound": "flops" if by_flops else "bytes",
        }

    def _measured(self, times: Times, cost: Cost) -> dict[str, Any]:
        ms = times.quantile(0.5)
        floor = max(cost.flops / self.rates.flops_per_second, cost.bytes / self.rates.bytes_per_second)
        return {
            "ms": ms,
            "ms_p20": times.quantile(0.2),
            "ms_p80": times.quantile(0.8),
            "repeats": len(times.total),
            "tflops_per_second": cost.flops / (ms * 1e9),
            "roofline_share": floor / (ms * 1e-3),
        }

    def _in_use(self) -> float | None:
        """MB in use now on a GPU; of a CPU None: what a process grew by says nothing, as freed memory is used again."""
        if self.device.type != "cuda":
            return None
        self.execution.reset_peak_memory()
        return self.execution.peak_memory_mb()

    def _peak(self, case: Case) -> float | None:
        """MB in use at the peak of a warm repetition, inputs included."""
        self.watch.synchronize()
        self.execution.reset_peak_memory()
        case.backward(case.forward())
        self.watch.synchronize()
        return self.execution.peak_memory_mb()

    def _tidy(self, case: Case) -> None:
        """Give back what the case held, and see whether the device still answers."""
        if self.device.type == "cuda":
            gc.collect()  # an error's frames hold on to tensors
        try:
            self.execution.synchronize()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        except RuntimeError as error:
            self.dead = f"not run: after {case.name} the device answers nothing but {first_line(error)}"


def _how_much(error: Exception) -> str:
    """The beginning of an allocator's message, before its advice: that memory ran out, and how much was asked for."""
    return ". ".join(first_line(error).split(". ")[:2]).rstrip(".")
