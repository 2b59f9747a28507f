"""The optimizer beside the class of PyTorch whose function it calls."""

from __future__ import annotations

import torch

from dsabench.engine.optimizer import Optimizer
from dsabench.model.transformer import build
from dsabench.spec.run import RunSpec


def train_beside_adamw(spec: RunSpec, device: torch.device, steps: int = 6) -> None:
    """Parameters, moments and counts stay equal, bit by bit, where some parameters have no gradients at first and the
    rate changes. The spec should not clip."""
    model, twin = (build(spec, 40).to(device) for _ in range(2))
    ours = Optimizer(model, spec, device)
    partner = dict(zip(model.parameters(), twin.parameters(), strict=True))
    theirs = torch.optim.AdamW(
        [
            {"params": [partner[p] for p in group.parameters], "weight_decay": group.weight_decay}
            for group in ours.groups
        ],
        lr=torch.zeros((), device=device) if device.type == "cuda" else 0.0,
        betas=(0.9, spec.train.beta2),
        fused=True,
        capturable=device.type == "cuda",
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for i, (p, q) in enumerate(partner.items()):
            p.grad = torch.randn(p.shape, generator=generator).to(device) if step > 2 or i % 3 else None
            q.grad = None if p.grad is None else p.grad.clone()
        factor_1 = torch.tensor([0.3 + 0.1 * step], device=device)
        ours.set_rate(factor_1)
        ours.step()
        for theirs_of, mine in zip(theirs.param_groups, ours.groups, strict=True):
            rate_1 = torch.tensor(mine.peak, device=device) * factor_1
            theirs_of["lr"] = rate_1[0] if device.type == "cuda" else float(rate_1)
        theirs.step()
    for p, q in partner.items():
        assert torch.equal(p, q)
        assert ours.moments[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            assert torch.equal(ours.moments[p][key], value), key
            assert ours.moments[p][key].device == value.device, key
    ours.zero_grad()
    assert all(p.grad is None for p in model.parameters())
