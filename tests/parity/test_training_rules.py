"""The learning-rate schedule against transformers', AdamW against PyTorch's class."""

from __future__ import annotations

import os

import pytest
import torch
from parity import Parity
from torch import nn

from dsabench.engine.optimizer import Optimizer, learning_rate_factor
from dsabench.model.transformer import build
from dsabench.spec.run import validate

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded

SCHEDULE = Parity(
    "learning rate of every step",
    "`transformers` cosine with min_lr_rate 0.1",
    1e-12,
)
ADAMW = Parity("parameters after 8 clipped steps", "`torch` AdamW, clip_grad_norm_", 1e-6)

TINY = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 8}


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 100), (7, 3), (50, 1)])
def test_every_step_has_the_rate_of_transformers(steps: int, warmup: int) -> None:
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

    spec = validate({"length": 16, "attention": {"kind": "dense"}, "train": {"steps": steps, "warmup_steps": warmup}})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(optimizer, warmup, steps, min_lr_rate=0.1)
    theirs = []
    for _ in range(steps):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [learning_rate_factor(spec, step) for step in range(steps)]
    SCHEDULE.check(ours, theirs)
    assert ours[warmup - 1] == 1.0 and ours[-1] == pytest.approx(0.1), "its ends: the peak, and a tenth of it"


def test_clipped_steps_are_those_of_pytorchs_class() -> None:
    """Matrices decay, embedding and vectors do not; all of a dense model is clipped together."""
    spec = validate(
        {
            "length": 16,
            "attention": {"kind": "dense"},
            "model": TINY,
            "train": {"grad_clip": 0.5, "weight_decay": 0.1, "learning_rate": 3e-3, "beta2": 0.95},
        }
    )
    ours, theirs = build(spec, 40), build(spec, 40)
    theirs.load_state_dict(ours.state_dict())
    named = dict(theirs.named_parameters())
    decays = [p for name, p in named.items() if p.ndim > 1 and "embedding" not in name and "head" not in name]
    rest = [p for p in named.values() if all(p is not one for one in decays)]
    class_ = torch.optim.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    optimizer = Optimizer(ours, spec, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
            assert name in named
        optimizer.set_rate(torch.tensor([learning_rate_factor(spec, step)]))
        optimizer.step()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in class_.param_groups:
            group["lr"] = 3e-3 * learning_rate_factor(spec, step)
        class_.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        ADAMW.check(p, q)
