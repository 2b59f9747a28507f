"""The optimizer, the learning-rate schedule and the stages: one rule for every attention variant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from dsabench.attention.base import Stage
from dsabench.model.transformer import Transformer
from dsabench.spec.attention import DenseSpec
from dsabench.spec.run import RunSpec


def learning_rate_factor(spec: RunSpec, step: int) -> float:
    """Share of the peak learning rate at `step` (0-based): linear from 1/warmup_steps to 1, then cosine to 0.1 or 1.

    In a trained model's conversion by a frozen warm-up each stage has a schedule of its own, as in DeepSeek-V3.2
    (arXiv 2512.02556, section 2.1.1): the warm-up's is linear and then 1, and the sparse stage begins at its step 0.
    Else the backbone's first step after the warm-up, with new moments, would be one at the full rate.
    """
    train, apart = spec.train, 0
    if spec.start is not None and spec.attention.warmup_freezes_backbone():
        apart = spec.attention.warmup_steps(train.steps)
    in_warmup = step < apart
    step = step if in_warmup else step - apart
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if in_warmup or train.schedule == "constant":
        return 1.0
    progress = (step + 1 - train.warmup_steps) / max(1, train.steps - apart - train.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def stage_at(spec: RunSpec, step: int) -> Stage:
    """The stage of the 0-based step: dense for the attention's warm-up steps, sparse after them."""
    return "dense" if step < spec.attention.warmup_steps(spec.train.steps) else "sparse"


def recorded_stage(spec: RunSpec, stage: Stage) -> Stage:
    """The stage as records name it: dense attention is dense in every step, though its steps are those of `sparse`."""
    return "dense" if isinstance(spec.attention, DenseSpec) else stage


_UNDECAYED = ("embedding.weight", "head.weight")


@dataclass
class Group:
    """Parameters with one learning rate and one weight decay."""

    parameters: list[nn.Parameter]
    peak: float
    warmup_peak: float
    """The peak in the dense warm-up stage."""

    weight_decay: float
    rate: Tensor | float = 0.0
    """In a CUDA graph it must be a tensor: a number would be baked in at capture."""


def _by_rates(model: Transformer, spec: RunSpec) -> dict[tuple[float, float | None], list[nn.Parameter]]:
    """The attentions' own parameters by their peak learning rates, the second in the warm-up where it is another; all
    layers have the same but in a hybrid stack."""
    found: dict[tuple[float, float | None], list[nn.Parameter]] = {}
    for layer, parameters in model.own_parameters_by_layer().items():
        attention = spec.attention.at(layer)
        rate = attention.own_learning_rate() or spec.train.learning_rate
        found.setdefault((rate, attention.warmup_rates()[0]), []).extend(parameters.values())
    return found


class Optimizer:
    """AdamW (beta1 0.9) over the backbone and the attention's own parameters, clipped apart.

    A common clip would couple the language-model loss and the indexer's loss again, which the detached input keeps
    apart. Matrices decay; gains, biases, embedding and output layer do not.

    It calls the function that torch.optim.AdamW calls: the class imports PyTorch's compiler, which takes seconds.
    """

    def __init__(self, model: Transformer, spec: RunSpec, device: torch.device) -> None:
        own = model.attention_own_parameters()
        self.own = list(own.values())
        self.backbone = [p for name, p in model.named_parameters() if name not in own]
        self.max_norm = spec.train.grad_clip
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.groups: list[Group] = []
        for parameters, rate, first in (
            (self.backbone, spec.train.learning_rate, spec.attention.warmup_rates()[1]),
            *((alike, *rates) for rates, alike in _by_rates(model, spec).items()),
        ):
            for decays in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1 and self.names[p] not in _UNDECAYED) == decays]
                if chosen:
                    decay = spec.train.weight_decay if decays else 0.0
                    self.groups.append(Group(chosen, rate, rate if first is None else first, decay))
        self.beta2 = spec.train.beta2
        self.moments: dict[Tensor, dict[str, Tensor]] = {}
        """Of every parameter that has been updated: `step` (), `exp_avg` and `exp_avg_sq` of its own shape."""
        self._on_device = device.type == "cuda"
        self._fused = device.type in ("cuda", "cpu")
        self.peaks_G: dict[Stage, Tensor] = {
            "dense": torch.tensor([group.warmup_peak for group in self.groups], device=device),
            "sparse": torch.tensor([group.peak for group in self.groups], device=device),
        }
        self.rates_G = torch.zeros_like(self.peaks_G["sparse"])
        if self._on_device:
            for group, rate_1 in zip(self.groups, self.rates_G, strict=True):
                group.rate = rate_1

    def set_rate(self, factor_1: Tensor, stage: Stage = "sparse") -> None:
        """Set every group's learning rate to its peak in the stage times factor (1,); does not wait for the device."""
        torch.mul(self.peaks_G[stage], factor_1, out=self.rates_G)
        if not self._on_device:
            for group, rate in zip(self.groups, self.rates_G.tolist(), strict=True):
                group.rate = rate

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.names:
            parameter.grad = None

    def step(self) -> tuple[Tensor, Tensor]:
        """Clip, update, and return the gradient norms, before clipping, of backbone and own parameters."""
        norms = []
        for parameters in (self.backbone, self.own):
            grads = [p.grad for p in parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=self.backbone[0].device)
            if self.max_norm is not None and grads:
                nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], self.max_norm, norm)
            norms.append(norm)
        for group in self.groups:
            self._update(group)
        return norms[0], norms[1]

    @torch.no_grad()
    def _update(self, group: Group) -> None:
        learning: list[Tensor] = []
        for p in group.parameters:
            if p.grad is None:
                continue
            learning.append(p)
            if p not in self.moments:
                step = torch.zeros((), device=p.device if self._fused else "cpu")
                self.moments[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        states = [self.moments[p] for p in learning]
        adamw(
            learning,
            [p.grad for p in learning if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=self._fused,
            capturable=self._on_device,
            amsgrad=False,
            beta1=0.9,
            beta2=self.beta2,
            lr=group.rate,
            weight_decay=group.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """('PARAMETER/STATE', tensor) of every parameter that has been updated."""
        for parameter, state in self.moments.items():
            for key, value in state.items():
                yield f"{self.names[parameter]}/{key}", value

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave, onto each parameter's device."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        for key, value in tensors.items():
            name, _, part = key.rpartition("/")
            parameter = parameters[name]
            state = self.moments.setdefault(parameter, {})
            if part in state:  # in place: a captured graph reads it where it lies
                state[part].copy_(value)
            elif part == "step":
                state[part] = value.to(parameter.device if self._on_device else "cpu", copy=True)
            else:  # laid out as the parameter is, or the fused update would read them in different orders
                state[part] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def restart(self) -> None:
        """Forget all steps, in place."""
        for state in self.moments.values():
            for value in state.values():
                value.zero_()
