"""DSA's indexer and the mixture of experts against `transformers`: its DeepSeek-V3.2 and its Mixtral."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from parity import Parity
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import reference
from dsabench.attention.dsa.indexer import LightningIndexer
from dsabench.model.moe import MixtureOfExperts
from dsabench.model.transformer import ForwardPass, build
from dsabench.spec.run import RunSpec, validate

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: classes alone are used

SCORES = Parity(
    "index scores of DSA", "`transformers` DeepseekV32Indexer, its weights copied", 1e-6, "rms difference over rms"
)
EXPERTS = Parity("experts: routing, SwiGLU, sums", "`transformers` MixtralSparseMoeBlock", 1e-5)
EXPERT_GRADIENTS = Parity("gradients of the experts' input and router", "`transformers` MixtralSparseMoeBlock", 1e-4)
BALANCE = Parity("a layer's load-balancing loss", "`transformers` load_balancing_loss_func over k", 1e-4)

SELECTED = Parity("keys that DSA selects", "`transformers` DeepseekV32Indexer, its weights copied", 0)
LENGTH, WIDTH, KEPT = 33, 48, 4
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def spec_of(norm_eps: float | None = None, n_heads: int = 4, head_dim: int = 16, **model: Any) -> RunSpec:
    indexer = {"n_heads": n_heads, "head_dim": head_dim, **({} if norm_eps is None else {"norm_eps": norm_eps})}
    model = {"d_model": WIDTH, "n_heads": 4, "d_ff": 24, "n_layers": 3, **model}
    return validate({"length": LENGTH, "model": model, "attention": {"kind": "dsa", "indexer": indexer}})


class ScoresBeforeTopK(TorchFunctionMode):
    """Keeps what `Tensor.topk` is given: the library's indexer returns the chosen keys alone."""

    scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.topk:
            self.scores = args[0]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def both(ours: LightningIndexer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index scores (B, T, S) of our indexer and of the library's with the same weights, 0 beyond the causal mask; and
    the keys that the library's keeps, (B, T, KEPT)."""
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek
    from transformers.models.deepseek_v32.configuration_deepseek_v32 import DeepseekV32Config

    config = DeepseekV32Config(
        hidden_size=WIDTH,
        q_lora_rank=WIDTH,  # queries come from x itself here, in DeepSeek's model from a projection of it
        index_n_heads=ours.n_heads,
        index_head_dim=ours.head_dim,
        index_topk=KEPT,
        qk_rope_head_dim=ours.head_dim // 2,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_base},
    )
    theirs = deepseek.DeepseekV32Indexer(config, 0).to(x.dtype)
    ours = ours.to(x.dtype)
    for mine, its in ((ours.query, theirs.wq_b), (ours.key, theirs.wk), (ours.weight, theirs.weights_proj)):
        its.weight.copy_(mine.weight)
    for parameter in ("weight", "bias"):
        torch.nn.init.normal_(getattr(ours.key_norm, parameter), 1.0 if parameter == "weight" else 0.0, 0.3)
        getattr(theirs.k_norm, parameter).copy_(getattr(ours.key_norm, parameter))
    positions_T = torch.arange(LENGTH)
    cos, sin = deepseek.DeepseekV32RotaryEmbedding(config)(x, positions_T[None])
    before = ScoresBeforeTopK()
    with before:
        selected_BTK = theirs(x, x, (cos, sin), CAUSAL[None], positions_T[None])
    assert before.scores is not None
    scores = (ours(x, AttentionContext(positions_T)), before.scores)
    return *(one.masked_fill(~CAUSAL, 0.0) for one in scores), selected_BTK.long()


@pytest.mark.parametrize(("n_heads", "head_dim"), [(1, 8), (4, 16), (3, 64)])
@pytest.mark.parametrize("size", [1.0, 0.05])
def test_index_scores_are_those_of_deepseek(n_heads: int, head_dim: int, size: float) -> None:
    """The default indexer: LayerNorm's epsilon, rotary layout and share, scale. `size` is that of the inputs: of small
    ones the epsilon is a larger part."""
    torch.manual_seed(7)
    x = size * torch.randn(2, LENGTH, WIDTH)
    spec = spec_of(None, n_heads, head_dim)
    ours, theirs, _ = both(LightningIndexer(spec, spec.attention), x)  # type: ignore[arg-type]
    SCORES.check(ours, theirs)


@pytest.mark.parametrize("n_heads", [3, 8])
def test_selected_sets_are_those_of_deepseek(n_heads: int) -> None:
    """Of every row but those whose worst kept score is as good as the best one left (relu makes such ties, and the
    library leaves open which of them it keeps)."""
    torch.manual_seed(9)
    x = torch.randn(2, LENGTH, WIDTH)
    spec = spec_of(None, n_heads)
    scores, _, listed = both(LightningIndexer(spec, spec.attention), x)  # type: ignore[arg-type]
    found, expected = (torch.zeros(2, LENGTH, LENGTH + 1, dtype=torch.bool) for _ in range(2))
    slots = reference.select_top_k(scores, CAUSAL, KEPT)
    found.scatter_(-1, torch.where(slots == reference.EMPTY, LENGTH, slots), True)
    expected.scatter_(-1, listed, True)
    best = scores.masked_fill(~CAUSAL, -torch.inf).sort(-1, descending=True).values
    untied = ~(best[..., KEPT - 1] - best[..., KEPT] < 1e-5)
    untied[:, :KEPT] = True  # rows that keep all that they see
    assert int(untied.sum()) > 0.6 * untied.numel()
    SELECTED.check(found[..., :LENGTH][untied], (expected[..., :LENGTH] & CAUSAL)[untied])


def test_another_epsilon_is_seen() -> None:
    """PyTorch's 1e-5, which runs of dsabench 0.1 had: hundreds of times the tolerance away."""
    torch.manual_seed(7)
    x = 0.05 * torch.randn(2, LENGTH, WIDTH)
    spec = spec_of(1e-5)
    ours, theirs, _ = both(LightningIndexer(spec, spec.attention), x)  # type: ignore[arg-type]
    assert SCORES.difference(ours, theirs) > 2e-4


def mixtral(n_experts: int, per_token: int) -> tuple[MixtureOfExperts, Any]:
    """Our experts and Mixtral's, with the same weights."""
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    torch.manual_seed(3)
    ours = MixtureOfExperts(spec_of(n_experts=n_experts, experts_per_token=per_token).model)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    config = MixtralConfig(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_local_experts=n_experts,
        num_experts_per_tok=per_token,
        experts_implementation="eager",
    )
    theirs = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([ours.gate_EDF, ours.up_EDF], -1).transpose(1, 2))
        theirs.experts.down_proj.copy_(ours.down_EFD.transpose(1, 2))
    return ours, theirs


@pytest.mark.parametrize(("n_experts", "per_token"), [(4, 2), (8, 2), (3, 3)])
def test_experts_are_those_of_mixtral(n_experts: int, per_token: int) -> None:
    """Outputs, and gradients of the input and the router."""
    ours, theirs = mixtral(n_experts, per_token)
    x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    outputs = [ours(x)[0], theirs(x)]
    found, expected = (out[0] if isinstance(out, tuple) else out for out in outputs)
    EXPERTS.check(found, expected)
    weight = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((out * weight).sum(), (x, router))
        for out, router in ((found, ours.router.weight), (expected, theirs.gate.weight))
    ]
    for mine, its in zip(*gradients, strict=True):
        EXPERT_GRADIENTS.check(mine, its)


@pytest.mark.parametrize("per_token", [1, 2])
def test_mixtrals_balance_loss_is_k_times_ours(per_token: int) -> None:
    """Of one layer. Of several, theirs is that of all routes together, ours the mean over layers."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(5)
    model = build(spec_of(n_experts=4, experts_per_token=per_token), 100)
    logits: list[Tensor] = []
    losses: list[Tensor] = []
    for block in model.layers():
        torch.nn.init.normal_(block.experts.router.weight, 0.0, 0.5)  # uneven
        block.experts.register_forward_hook(
            lambda module, inputs, result: (
                logits.append(module.router(inputs[0].flatten(0, 1))),
                losses.append(result[1].balance_loss),
                None,
            )[2]
        )
    with torch.no_grad():
        ours = model(torch.randint(100, (2, LENGTH)), ForwardPass()).balance_loss
    of_layers = [load_balancing_loss_func((layer,), 4, per_token) for layer in logits]
    for mine, its in zip(losses, of_layers, strict=True):
        BALANCE.check(per_token * float(mine), float(its))
    assert float(ours) == pytest.approx(sum(map(float, of_layers)) / 3 / per_token, rel=1e-5)
    pooled = load_balancing_loss_func(tuple(logits), 4, per_token)
    assert float(pooled) < 0.999 * per_token * float(ours), "what is uneven in one layer evens out among several"
