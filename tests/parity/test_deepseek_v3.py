"""Multi-head latent attention against the one of DeepSeek-V3 in `transformers`, with the same weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import Parity
from torch import Tensor

from dsabench.attention.base import Attention, AttentionContext
from dsabench.attention.construction import construct
from dsabench.attention.latent import LatentProjections
from dsabench.spec.run import validate

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: classes alone are used


def ours_of(latent: dict[str, Any], d_model: int, n_heads: int, length: int, rope_base: float) -> Attention:
    model = {"d_model": d_model, "n_heads": n_heads, "attention_layout": "latent", "latent": latent}
    attention = construct(
        validate({"length": length, "attention": {"kind": "dense"}, "model": {**model, "rope_base": rope_base}}), 0
    )
    for parameter in attention.parameters():
        std = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), std)
    return attention


def neighbours(rows: Tensor, rotated: int) -> Tensor:
    """The rows of a projection whose last `rotated` ones are halves, in the order in which pairs are neighbours, which
    is DeepSeek's."""
    kept, halves = rows.split([len(rows) - rotated, rotated])
    return torch.cat([kept, halves.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)])


def theirs_of(ours: Attention, interleaved: bool = True) -> tuple[Any, Any]:
    """Their attention with our weights, and their rotation."""
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

    model, mine = ours.spec.model, ours.projections
    assert isinstance(mine, LatentProjections) and model.latent is not None
    config = DeepseekV3Config(
        hidden_size=model.d_model,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_heads,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        rope_interleave=interleaved,
        attn_implementation="eager",
        **model.latent.model_dump(),
    )
    its = deepseek.DeepseekV3Attention(config, 0)

    def ordered(rows: Tensor) -> Tensor:
        return neighbours(rows, mine.rotated) if interleaved else rows

    queries = torch.cat([ordered(head) for head in mine.query.weight.unflatten(0, (model.n_heads, -1))])
    pairs = {
        (its.q_proj if mine.query_down is None else its.q_b_proj): queries,
        its.kv_a_proj_with_mqa: ordered(mine.latent_down.weight),
        its.kv_a_layernorm: mine.latent_norm.weight,
        its.kv_b_proj: mine.latent_up.weight,
        its.o_proj: mine.out.weight,
    }
    if mine.query_down is not None and mine.query_norm is not None:
        pairs |= {its.q_a_proj: mine.query_down.weight, its.q_a_layernorm: mine.query_norm.weight}
    with torch.no_grad():
        for module, weight in pairs.items():
            module.weight.copy_(weight)
    assert {id(module) for module in pairs} == {id(module) for module in its.modules() if hasattr(module, "weight")}
    return its, deepseek.DeepseekV3RotaryEmbedding(config)


Pair = tuple[Tensor, Tensor]


def both(ours: Attention, interleaved: bool = True, **changed: float) -> tuple[Pair, Pair]:
    """Ours and theirs: the outputs, and the gradients of the input."""
    its, rotation = theirs_of(ours, interleaved)
    for name, value in changed.items():
        setattr(its, name, value)
    length = ours.spec.length
    x_BTD = torch.randn(2, length, ours.spec.model.d_model, requires_grad=True)
    positions_T = torch.arange(length)
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    expected = its(x_BTD, rotation(x_BTD, positions_T[None]), mask)[0]
    found = ours(x_BTD, AttentionContext(positions_T)).out_BTD
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((out * weight).sum(), x_BTD)[0] for out in (found, expected)]
    return (found.detach(), expected.detach()), (gradients[0], gradients[1])


def difference(ours: Attention, interleaved: bool = True, **changed: float) -> tuple[float, float]:
    outputs, gradients = both(ours, interleaved, **changed)
    return MLA.difference(*outputs), MLA_GRADIENT.difference(*gradients)


MLA = Parity(
    "latent attention (MLA)", "`transformers` DeepseekV3Attention", 1e-4, "largest difference over largest value"
)
MLA_GRADIENT = Parity(
    "gradient of the input of latent attention",
    "`transformers` DeepseekV3Attention",
    1e-4,
    "largest difference over largest value",
)
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}


@settings(max_examples=20, deadline=None)
@given(
    ranks=st.tuples(st.none() | st.integers(1, 40), st.integers(1, 40)),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 6).map(lambda n: 2 * n), st.integers(1, 20)),
    n_heads=st.integers(1, 5),
    length=st.integers(2, 33),
    rope_base=st.sampled_from([10_000.0, 50.0]),
    seed=st.integers(0, 10**6),
)
def test_outputs_and_gradients_are_those_of_deepseek_v3(
    ranks: tuple[int | None, int],
    widths: tuple[int, int, int],
    n_heads: int,
    length: int,
    rope_base: float,
    seed: int,
) -> None:
    """Their layout of the rotated columns, neighbours, and their other one, halves, which is ours."""
    torch.manual_seed(seed)
    nope, rope, value = widths
    latent = {
        **dict(zip(LATENT, (*ranks, nope, rope), strict=False)),
        "v_head_dim": min(value, nope + rope),
    }
    ours = ours_of(latent, 32, n_heads, length, rope_base)
    for interleaved in (True, False):
        outputs, gradients = both(ours, interleaved)
        MLA.check(*outputs)
        MLA_GRADIENT.check(*gradients)


@pytest.mark.parametrize("wrong", ["scale", "order of columns", "norm"])
def test_a_wrong_part_is_seen(wrong: str) -> None:
    """The tolerance is not too wide."""
    torch.manual_seed(1)
    ours = ours_of(LATENT, 32, 4, 33, 10_000.0)
    assert max(difference(ours)) < 1e-5
    if wrong == "scale":
        apart = difference(ours, scaling=16**-0.5)
    elif wrong == "norm":
        ours.projections.latent_norm.eps = 0.1  # type: ignore[union-attr]
        apart = difference(ours)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(theirs_of.__globals__, "neighbours", lambda rows, rotated: rows)
            apart = difference(ours)
    assert min(apart) > 1e-2
