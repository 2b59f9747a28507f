"""Names and layouts of the parameters in the files of `transformers`: Llama, Qwen2 and Qwen3, and Mixtral for several
experts.

Legend: D model width, F expert width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}

_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}

_IN_A_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "experts_norm.weight": "post_attention_layernorm.weight",
    **{
        f"attention.projections.{ours}.{part}": f"self_attn.{theirs}.{part}"
        for ours, theirs in _PROJECTIONS.items()
        for part in ("weight", "bias")
    },
    "attention.projections.query_norm.weight": "self_attn.q_norm.weight",
    "attention.projections.key_norm.weight": "self_attn.k_norm.weight",
}

_EXPERTS = {
    "experts.gate_EDF": ("gate_proj", "w1"),
    "experts.up_EDF": ("up_proj", "w3"),
    "experts.down_EFD": ("down_proj", "w2"),
}
"""Matrices of the experts -> the matrix of the only expert (Llama), and of each of several (Mixtral)."""


def their_names(name: str, n_experts: int) -> tuple[str, ...]:
    """The tensors that make up the parameter `name`: one, or one for each expert. () for the router of one expert,
    which decides nothing and which they have not. Raises KeyError for a parameter that they have not (an indexer's)."""
    if name in _OUTSIDE:
        return (_OUTSIDE[name],)
    blocks, layer, inner = name.split(".", 2)
    if blocks != "blocks":
        raise KeyError(name)
    prefix = f"model.layers.{layer}"
    if inner == "experts.router.weight":
        return () if n_experts == 1 else (f"{prefix}.block_sparse_moe.gate.weight",)
    if inner in _EXPERTS:
        only, several = _EXPERTS[inner]
        if n_experts == 1:
            return (f"{prefix}.mlp.{only}.weight",)
        return tuple(f"{prefix}.block_sparse_moe.experts.{e}.{several}.weight" for e in range(n_experts))
    return (f"{prefix}.{_IN_A_LAYER[inner]}",)


def their_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of each of these tensors: an expert's matrix is the other way round."""
    return (shape[2], shape[1]) if _of_experts(name) else tuple(shape)


def as_theirs(name: str, parameter: Tensor) -> list[Tensor]:
    """The tensors of `their_names`, from the parameter."""
    return [matrix.t() for matrix in parameter] if _of_experts(name) else [parameter]


def as_ours(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """The parameter in fp32, from the tensors of `their_names`."""
    if _of_experts(name):
        return torch.stack([tensor.float().t() for tensor in tensors])
    return tensors[0].float()


def _of_experts(name: str) -> bool:
    return name.endswith(("_EDF", "_EFD"))
