"""The metrics of a model's first training steps on drawn tokens, in both stages."""

from __future__ import annotations

import torch

from dsabench.engine import loop
from dsabench.engine.device import Execution, determinism
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.step import TrainStep
from dsabench.model.transformer import build
from dsabench.spec.run import RunSpec

VOCAB = 500


def history(spec: RunSpec, execution: Execution, steps: int = 40, most: int | None = None) -> torch.Tensor:
    """The metrics of the first steps of both stages; 20 of the tokens occur. most: the bound of documents a window."""
    with determinism(execution):
        model = build(spec, VOCAB).to(execution.device)
        step = TrainStep(model, Optimizer(model, spec, execution.device), spec, execution)
        generator = torch.Generator().manual_seed(0)
        batches = torch.randint(20, (steps, spec.batch_size, spec.length + 1), generator=generator)
        begins = torch.rand(steps, spec.batch_size, spec.length + 1, generator=generator) < 0.02
        begins[..., 0] = False
        others = (~begins[..., 1:], begins.cumsum(-1)[..., :-1].int()) if spec.data.packing == "documents" else ()
        found = []
        for first, end, stage in loop.segments(spec, 0, 20):
            if first >= steps:
                break
            given = (x[first : min(end, steps)] for x in (batches, *others))
            found.append(step.run(first, stage, *given, most_documents=most).cpu())
            if execution.graph and stage not in step.graphs:
                step.capture(stage)
    return torch.cat(found)
