"""Trained models and the floors of tasks: what a model has learnt of a task is gone when what it is about is shuffled,
and what can be learnt from shuffled windows is the floor.

Accuracies are those of 600 windows or more; a standard error over windows is below 0.01.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from task_shuffle import shuffled

from dsabench.data import cut, prepare
from dsabench.data.tasks import TaskWindows
from dsabench.engine.device import resolve
from dsabench.engine.slot import Slots
from dsabench.engine.staged_batches import staged
from dsabench.spec.run import validate
from dsabench.spec.task_floors import Floor

ERROR = 0.03
"""Three standard errors."""

RECALL = {"n_pairs": 3, "n_keys": 8, "n_values": 8}


class Learnt(NamedTuple):
    """Of held-out windows after training."""

    accuracy: float
    shuffled: float
    loss_of_shuffled: float
    floor: Floor


def learn(
    name: str, length: int, steps: int, values: dict[str, Any], rate: float = 3e-3, from_shuffled: bool = False
) -> Learnt:
    """A dense model of two layers, trained for `steps` on a task, or on its windows shuffled."""
    spec = validate(
        {
            "length": length,
            "attention": {"kind": "dense"},
            "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 32, "n_experts": 1, "experts_per_token": 1},
            "data": {"source": f"task:{name}", "task": {**values, "curriculum": None}},
            "train": {"steps": steps, "batch_size": 32, "learning_rate": rate, "warmup_steps": 20},
            "engine": {"device": "cpu"},
            "seed": 1,
        }
    )
    data, execution = prepare(spec.data), resolve(spec.engine)
    slot, windows, task = Slots().take(spec, data.vocab_size, execution), cut(data, length), spec.data.task
    slot.begin(spec)
    assert isinstance(windows, TaskWindows) and task is not None
    batches = [windows.batch(spec.seed, step, spec.batch_size, steps) for step in range(steps)]
    if from_shuffled:
        batches = [shuffled(task, batch, step) for step, batch in enumerate(batches)]
    slot.step.run(0, "sparse", *staged(batches, execution.device))
    held_out = windows.evaluation("val", 800 * length)
    seen, mixed = (slot.evaluator.evaluate(one, "sparse") for one in (held_out, shuffled(task, held_out)))
    return Learnt(seen["accuracy"], mixed["accuracy"], mixed["loss"], task.floor)


LEARNABLE = {
    "recall": (12, 500, RECALL),
    "needle": (20, 300, {"n_needles": 3, "n_keys": 8, "n_words": 8, "value_length": 1}),
    "induction": (15, 900, {"n_copied": 6, "n_symbols": 8}, 6e-3),
    "selective_copy": (10, 300, {"n_copied": 4, "n_symbols": 8}),
    "arithmetic": (20, 900, {"n_digits": 2}),
}


@pytest.mark.parametrize(
    "name", [name if name in ("recall", "selective_copy") else pytest.param(name, marks=pytest.mark.slow)
             for name in LEARNABLE]
)  # fmt: skip
def test_a_trained_model_falls_to_the_floor_when_what_the_task_is_about_is_shuffled(name: str) -> None:
    found = learn(name, *LEARNABLE[name])
    assert found.accuracy > found.floor.accuracy + 0.3
    assert found.shuffled < found.floor.accuracy + ERROR


def test_recall_of_shuffled_keys_teaches_the_floor() -> None:
    """The best that can be learnt without keys is what the formula says, in accuracy and in loss."""
    found = learn("recall", 12, 300, RECALL, from_shuffled=True)
    assert abs(found.shuffled - found.floor.accuracy) < ERROR
    assert -0.01 < found.loss_of_shuffled - found.floor.loss < 0.08


def test_shown_answers_can_be_won_without_a_key() -> None:
    """The fault that hidden answers mend: a model that has never met a key that said anything is far above the floor of
    hidden answers, and 0.36 above 1 / n_values, which was shown as chance. Its own floor it does not pass."""
    hidden = learn("recall", 12, 1, RECALL).floor
    found = learn("recall", 12, 450, {**RECALL, "answers": "shown"}, from_shuffled=True)
    assert found.shuffled > hidden.accuracy + 3 * ERROR
    assert found.shuffled > 1 / 8 + 0.36
    assert abs(found.shuffled - found.accuracy) < ERROR  # a true key helps it no more than a shuffled one
    assert found.shuffled < found.floor.accuracy + ERROR
