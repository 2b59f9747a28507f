"""The optimizer, the learning-rate schedule and the stages: one rule for every attention variant."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from dsabench.attention.base import Stage
from dsabench.model.transformer import Transformer
from dsabench.spec.fields import RunSpec, TrainSpec


def learning_rate_factor(train: TrainSpec, step: int) -> float:
    """Share of the peak learning rate at `step` (0-based): linear from 1/warmup_steps to 1, then cosine to 0.1 or 1."""
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return 1.0
    progress = (step + 1 - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def stage_at(spec: RunSpec, step: int) -> Stage:
    """The stage of the 0-based step: dense for the attention's warm-up steps, sparse after them."""
    return "dense" if step < spec.attention.warmup_steps(spec.train.steps) else "sparse"


class Optimizer:
    """AdamW (beta1 0.9) over the backbone and the attention's own parameters, clipped apart.

    A common clip would couple the language-model loss and the indexer's loss again, which the detached input keeps
    apart. Matrices decay; gains, biases and the tied embedding do not.
    """

    def __init__(self, model: Transformer, spec: RunSpec, device: torch.device) -> None:
        own = model.attention_own_parameters()
        self.own = list(own.values())
        self.backbone = [p for name, p in model.named_parameters() if name not in own]
        self.max_norm = spec.train.grad_clip
        self.names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        own_rate = spec.attention.own_learning_rate() or spec.train.learning_rate
        groups = []
        for parameters, rate in ((self.backbone, spec.train.learning_rate), (self.own, own_rate)):
            for decays in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1 and self.names[p] != "embedding.weight") == decays]
                decay = spec.train.weight_decay if decays else 0.0
                if chosen:
                    groups.append({"params": chosen, "peak": rate, "weight_decay": decay})
        # In a CUDA graph the learning rate must be a tensor: a number would be baked in at capture.
        self._on_device = device.type == "cuda"
        self.adamw = torch.optim.AdamW(
            groups,
            lr=torch.zeros((), device=device) if self._on_device else 0.0,
            betas=(0.9, spec.train.beta2),
            fused=device.type in ("cuda", "cpu"),
            capturable=self._on_device,
        )
        self.peaks_G = torch.tensor([group["peak"] for group in groups], device=device)
        self.rates_G = torch.zeros_like(self.peaks_G)
        if self._on_device:
            for group, rate in zip(self.adamw.param_groups, self.rates_G, strict=True):
                group["lr"] = rate

    def set_rate(self, factor_1: torch.Tensor) -> None:
        """Set every group's learning rate to its peak times factor (1,), without waiting for the device."""
        torch.mul(self.peaks_G, factor_1, out=self.rates_G)
        if not self._on_device:
            for group, rate in zip(self.adamw.param_groups, self.rates_G.tolist(), strict=True):
                group["lr"] = rate

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip, update, and return the gradient norms, before clipping, of backbone and own parameters."""
        norms = []
        for parameters in (self.backbone, self.own):
            grads = [p.grad for p in parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=self.backbone[0].device)
            if self.max_norm is not None and grads:
                nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], self.max_norm, norm)
            norms.append(norm)
        self.adamw.step()
        return norms[0], norms[1]

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """('PARAMETER/STATE', tensor) of every parameter that has been updated."""
        for parameter, state in self.adamw.state.items():
            for key, value in state.items():
                yield f"{self.names[parameter]}/{key}", value

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` gave, onto each parameter's device."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        for key, value in tensors.items():
            name, _, part = key.rpartition("/")
            parameter = parameters[name]
            state = self.adamw.state.setdefault(parameter, {})
            if part in state:  # in place: a captured graph reads it where it lies
                state[part].copy_(value)
            elif part == "step":
                state[part] = value.to(parameter.device if self._on_device else "cpu", copy=True)
            else:  # laid out as the parameter is, or the fused update would read them in different orders
                state[part] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def restart(self) -> None:
        """Forget all steps, in place."""
        for state in self.adamw.state.values():
            for value in state.values():
                value.zero_()
