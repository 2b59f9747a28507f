"""Small copies of a run's model with the same attention, small enough to try every position."""

from __future__ import annotations

import functools
import math

import torch
from pydantic import ValidationError

from dsabench.model.transformer import Transformer, build
from dsabench.spec.attention import AttentionSpec
from dsabench.spec.run import ModelSpec, RunSpec

LENGTHS = (32, 64, 128, 256)
"""Tokens of a small copy's window: the first that the attention takes."""

VOCABULARY = 61


def small_copies(spec: RunSpec, device: torch.device) -> list[RunSpec]:
    """Specs with the same attention in a short window: k at its share of the length and, where that is below the
    length, also the run's own number of keys. [] when the attention takes none of the sizes tried."""
    for length in sorted({min(length, spec.length) for length in LENGTHS}):
        attentions = _attentions(spec, length)
        for model in _models(spec.model, max(2, spec.attention.fewest_layers())):
            copies = [
                spec.model_copy(update={"length": length, "model": model, "attention": attention})
                for attention in attentions
            ]
            if copies and all(_works(copy, device) for copy in copies):
                return copies
    return []


def randomise(model: Transformer) -> Transformer:
    """Move gains and biases off their initial one and zero, which could hide a path."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def _attentions(spec: RunSpec, length: int) -> list[AttentionSpec]:
    """With each layer's share of the keys; and with its own number of them, where that is below the length."""
    share, own = (
        spec.attention.each(functools.partial(_with_keys, trained=spec.length, length=length, own=own)).once_each()
        for own in (False, True)
    )
    return [share] if own == share else [share, own]


def _with_keys(attention: AttentionSpec, trained: int, length: int, own: bool) -> AttentionSpec:
    cls, k = type(attention), attention.n_selected(trained)
    if k is None or "top_k" not in cls.model_fields:
        return attention
    share = max(1, math.floor(k * length / trained + 0.5))
    values = attention.model_dump()
    values.pop("top_k_ratio", None)
    try:
        return cls.model_validate({**values, "top_k": k if own and k < length else share})
    except ValidationError:  # this k is not accepted, because it must be a multiple of something, say
        return attention


def _models(of: ModelSpec, n_layers: int) -> list[ModelSpec]:
    """A narrow model, and one of the run's own width, for an attention that takes no other."""
    n_experts = min(4, of.n_experts)
    small = {
        "n_layers": min(n_layers, of.n_layers),
        "d_ff": min(16, of.d_ff),
        "n_experts": n_experts,
        "experts_per_token": min(of.experts_per_token, n_experts),
        "vocab_size": None,
    }
    wide = of.model_copy(update=small)
    n_heads = min(4, of.n_heads)
    groups = max(1, n_heads * of.kv_heads // of.n_heads)
    while n_heads % groups:
        groups -= 1
    heads = {"n_heads": n_heads, "n_kv_heads": None if of.n_kv_heads is None else groups, "d_model": 8 * n_heads}
    heads["head_width"] = None
    return [wide.model_copy(update=heads), wide] if 8 * n_heads < of.d_model else [wide]


def _works(copy: RunSpec, device: torch.device) -> bool:
    try:
        model = build(copy, VOCABULARY).to(device).eval()
        with torch.no_grad():
            model.features(torch.zeros(1, copy.length, dtype=torch.long, device=device))
    except Exception:  # of any kind, for a size that the attention does not take
        return False
    return True
