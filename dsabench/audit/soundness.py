"""Soundness of a model beside causality: shared weights, routed gradients, a sane start.

Legend: B batch, T time, N positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.base import Stage
from dsabench.model.transformer import ForwardPass, Transformer, build
from dsabench.spec.run import RunSpec

START_TOLERANCE = 0.5
"""Nats by which the first loss may differ from ln V; logits that start near zero differ by less."""

_LOGITS = 2**24
"""Most logits in memory at once."""


@dataclass(frozen=True)
class SharedStart:
    """Initial parameters of a model beside those of dense attention with the same seed."""

    same: tuple[str, ...]
    """Names of parameters that both have, bit-identical."""

    different: tuple[str, ...]
    """Names that both have, with other values or shapes."""

    own: tuple[str, ...]
    """Names that dense does not have."""

    missing: tuple[str, ...]
    """Names that only dense has."""


def shared_start(spec: RunSpec, vocab_size: int) -> SharedStart:
    """Compare the initial parameters with those of dense attention, tensor by tensor."""
    dense = RunSpec.model_validate({**spec.model_dump(exclude={"attention"}), "attention": {"kind": "dense"}})
    ours = dict(build(spec, vocab_size).named_parameters())
    theirs = dict(build(dense, vocab_size).named_parameters())
    both = [name for name in ours if name in theirs]
    same = [name for name in both if torch.equal(ours[name], theirs[name])]
    return SharedStart(
        same=tuple(same),
        different=tuple(name for name in both if name not in same),
        own=tuple(name for name in ours if name not in theirs),
        missing=tuple(name for name in theirs if name not in ours),
    )


@dataclass(frozen=True)
class Routing:
    """Which parameters each loss reaches with a gradient that is not zero, in one stage."""

    by_language_model: frozenset[str]
    by_own_loss: frozenset[str] | None
    """None when the attention has no loss of its own."""

    own: frozenset[str]
    """The attention's own parameters (an indexer's)."""

    backbone: frozenset[str]
    """All others that can learn."""


def routing(model: Transformer, tokens_BT: Tensor, stage: Stage = "sparse") -> Routing:
    """Where the gradients of the language-model loss (with the routers' balance loss) and of the attention's own loss
    go, in the model's mode. tokens: (B, T + 1)."""
    forward_pass = ForwardPass(stage=stage)
    own = frozenset(model.attention_own_parameters())
    backbone = frozenset(name for name, _ in model.named_parameters()) - own
    if model.spec.model.n_experts == 1:  # nothing to route, nothing to learn
        backbone = frozenset(name for name in backbone if "router" not in name)
    output = model(tokens_BT[:, :-1], forward_pass)
    loss = F.cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
    by_language_model = reached(loss + 0.01 * output.balance_loss, model)
    own_loss = model(tokens_BT[:, :-1], forward_pass).attention_loss
    by_own_loss = None if own_loss is None else frozenset(reached(own_loss, model))
    return Routing(frozenset(by_language_model), by_own_loss, own, backbone)


def reached(loss: Tensor, model: Transformer) -> set[str]:
    """Names of the parameters to which d(loss) is not zero."""
    if not loss.requires_grad:
        return set()
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None and bool(grad.ne(0).any())}


def mean_loss(model: Transformer, tokens_NT: Tensor, stage: Stage = "sparse") -> float:
    """Nats per token on windows of T + 1 tokens, in eval mode, one window after another."""
    total, was_training, forward_pass = 0.0, model.training, ForwardPass(stage=stage, losses=False)
    model.eval()
    with torch.no_grad():
        for tokens_T in tokens_NT:
            x_ND = model.features(tokens_T[None, :-1], forward_pass).x_BTD[0]
            for start in range(0, len(x_ND), step := max(1, _LOGITS // model.vocab_size)):
                logits_NV = F.linear(x_ND[start : start + step], model.head_VD)
                total += float(F.cross_entropy(logits_NV, tokens_T[start + 1 : start + 1 + step], reduction="sum"))
    model.train(was_training)
    return total / (len(tokens_NT) * (tokens_NT.shape[1] - 1))


def starts_sanely(loss: float, vocab_size: int) -> bool:
    """Whether a first loss is within START_TOLERANCE of ln V, what a model that knows nothing should have."""
    return abs(loss - math.log(vocab_size)) <= START_TOLERANCE
