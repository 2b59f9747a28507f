"""The cost of a conversion: what the selection alone costs a trained model, before it has trained the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsabench.attention.base import Stage
from dsabench.engine.prepared_run import PreparedRun


def is_due(run: PreparedRun, step: int) -> bool:
    """Whether a trained model's attention turns sparse after `step` steps of the run."""
    spec = run.spec
    selects = spec.attention.n_selected(spec.length) is not None
    return run.start is not None and selects and step == spec.attention.warmup_steps(spec.train.steps)


def of(
    run: PreparedRun, step: int, stage: Stage, found: Mapping[str, Any], other: Callable[[Stage], Mapping[str, Any]]
) -> dict[str, float]:
    """{"conversion_loss": nats}: sparse minus dense attention of the same weights on the same windows, after the step
    at which it `is_due`; after others empty.

    found: the evaluation in `stage`, dense after a warm-up and sparse without one. other: evaluates in the other stage.
    """
    if not is_due(run, step):
        return {}
    again: Stage = "sparse" if stage == "dense" else "dense"
    cost = float(other(again)["loss"]) - float(found["loss"])
    return {"conversion_loss": cost if again == "sparse" else -cost}
