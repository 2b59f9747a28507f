"""The kernels of a bench, launched on tensors without data, so that they are compiled together beforehand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from dsabench.bench.check import run_once, small
from dsabench.bench.document import Settings
from dsabench.bench.implementations import all_cases, chosen
from dsabench.bench.inputs import random_inputs
from dsabench.compilation.compile_order import Order


@dataclass(frozen=True)
class BenchLaunches:
    """What the bench of these settings launches: of DSA, whose kernels are ours."""

    settings: Settings

    def key(self) -> str:
        """Its settings, but for how often it is timed."""
        return self.settings.model_dump_json(exclude={"repeats"})

    def launch(self, order: Order) -> None:
        """As its checks and its times do."""
        from dsabench.compilation.dry_run import EMPTY, as_planned

        with as_planned(order):
            for settings in (small(self.settings, torch.device("cuda")), self.settings):
                cases = chosen(all_cases(settings, EMPTY), settings.only, settings.methods)
                ours = [case for case in cases if case.family == "dsa" and case.name != "dsa-reference"]
                for case, length in itertools.product(ours, settings.lengths):
                    if case.why_not(length) is None:
                        run_once(case, random_inputs(settings, length, EMPTY))
                        for part in case.parts() if settings is self.settings else ():
                            part.run()
                        case.release()
