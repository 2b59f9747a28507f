"""The language model: a pre-norm transformer with MoE feed-forwards and tied embeddings, free of infrastructure.

Legend: B batch, T time, D model width, V vocabulary, E experts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsabench.attention.base import AttentionContext, Selection, Stage
from dsabench.attention.registry import variant
from dsabench.model.moe import MixtureOfExperts
from dsabench.spec.fields import RunSpec


@dataclass(frozen=True)
class ModelOutput:
    """What one forward pass yields."""

    logits_BTV: Tensor
    """Scores of the next token."""

    attention_loss: Tensor | None
    """Mean over layers of the attention's own loss (an indexer's KL), or None when the variant has none."""

    balance_loss: Tensor
    """Mean over layers of the router's load-balancing loss."""

    expert_load_E: Tensor
    """Share of routes of each expert, mean over layers."""

    router_entropy: Tensor
    """Entropy of the router's softmax in nats, mean over tokens and layers."""


def autocast(x: Tensor) -> Tensor:
    """x in the dtype of matrix products: cast once here, rather than by autocast in each product that uses it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Block(nn.Module):
    """x + attention(norm(x)), then x + experts(norm(x))."""

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(spec.model.d_model, eps=1e-6)
        self.attention = variant(spec.attention.kind)(spec, layer)
        self.experts_norm = nn.RMSNorm(spec.model.d_model, eps=1e-6)
        self.experts = MixtureOfExperts(spec.model)


class Transformer(nn.Module):
    """Token ids (B, T) to next-token logits (B, T, V). Build it with `build` so that its weights are initialised."""

    def __init__(self, spec: RunSpec, vocab_size: int) -> None:
        super().__init__()
        self.spec, self.vocab_size = spec, vocab_size
        self.embedding = nn.Embedding(vocab_size, spec.model.d_model)
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.model.n_layers))
        self.norm = nn.RMSNorm(spec.model.d_model, eps=1e-6)
        self.stage: Stage = "sparse"

    def forward(
        self,
        tokens_BT: Tensor,
        document_ids_BT: Tensor | None = None,
        capture: dict[int, Selection] | None = None,
    ) -> ModelOutput:
        """Logits at t depend on tokens 0..t of the same row (and document) alone; `self.stage` is the stage."""
        dropout = self.spec.model.dropout if self.training else 0.0
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        context = AttentionContext(positions_T, self.stage, document_ids_BT, capture)
        x_BTD = F.dropout(self.embedding(tokens_BT) * self.spec.model.d_model, dropout)
        attention_losses, routers = [], []
        for block in self.layers():
            mixed = block.attention(autocast(block.attention_norm(x_BTD)), context)
            x_BTD = x_BTD + F.dropout(mixed.out_BTD, dropout)
            fed_BTD, router = block.experts(autocast(block.experts_norm(x_BTD)))
            x_BTD = x_BTD + F.dropout(fed_BTD, dropout)
            attention_losses += [mixed.aux_loss] if mixed.aux_loss is not None else []
            routers.append(router)
        return ModelOutput(
            logits_BTV=F.linear(self.norm(x_BTD), self.embedding.weight),
            attention_loss=torch.stack(attention_losses).mean() if attention_losses else None,
            balance_loss=torch.stack([router.balance_loss for router in routers]).mean(),
            expert_load_E=torch.stack([router.load_E for router in routers]).mean(0),
            router_entropy=torch.stack([router.entropy for router in routers]).mean(),
        )

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def attention_own_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that only the attention's own loss trains (indexers), by their full names."""
        own = {
            f"blocks.{layer}.attention.{name}"
            for layer, block in enumerate(self.layers())
            for name in block.attention.own_parameters()
        }
        return {name: parameter for name, parameter in self.named_parameters() if name in own}


def build(spec: RunSpec, vocab_size: int) -> Transformer:
    """A Transformer on the CPU in fp32 with its initial weights drawn.

    Each parameter is drawn from a generator keyed by (seed, its name): a parameter that two variants share starts
    bit-identical in both, whatever else either of them has.
    """
    model = Transformer(spec, vocab_size)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            continue
        generator = torch.Generator().manual_seed(_key(spec.seed, name))
        nn.init.normal_(parameter, std=_initial_std(name, parameter, spec), generator=generator)
    return model


def _initial_std(name: str, parameter: Tensor, spec: RunSpec) -> float:
    """Unit variance in, unit variance out: fan_in^-1/2, smaller where an output ends in the residual stream."""
    if name == "embedding.weight":
        # Tied. The final norm makes |x| = sqrt(D) and at the start x points along its own token's embedding, so that
        # token's logit is D std. At std = 1/D it is 1 and the first loss is ln V for every V and D, where the usual
        # 0.02 gives exp(0.02 D) times a small vocabulary's average. `forward` multiplies by D on the way in.
        return 1.0 / spec.model.d_model
    fan_in = parameter.shape[-2] if name.endswith(("_EDF", "_EFD")) else parameter.shape[-1]
    # So that the variance of the residual stream does not grow with depth (GPT-2's rule).
    residual = (2 * spec.model.n_layers) ** -0.5 if name.endswith(("projections.out.weight", "down_EFD")) else 1.0
    return float(fan_in**-0.5 * residual)


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def flops_per_window(model: Transformer, stage: Stage) -> dict[str, float]:
    """Model FLOPs of one training window, forward and backward, by item; active experts only, logits 6 L D V."""
    spec = model.spec
    items: dict[str, float] = {}
    for block in model.layers():
        for part in (block.attention.flops(stage), MixtureOfExperts.flops(spec.model, spec.length)):
            for item, value in part.items():
                items[item] = items.get(item, 0.0) + value
    items["logits"] = 6.0 * spec.length * spec.model.d_model * model.vocab_size
    if stage == "dense" and spec.attention.warmup_freezes_backbone():  # forward only, a third; the indexer learns
        items = {item: value if item.startswith("indexer") else value / 3 for item, value in items.items()}
    return items
