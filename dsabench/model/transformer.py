"""The language model: a pre-norm transformer with MoE feed-forwards, free of infrastructure.

Legend: B batch, T time, D model width, V vocabulary, E experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dsabench.attention.base import AttentionContext, Selection, Stage
from dsabench.attention.construction import construct
from dsabench.model.moe import MixtureOfExperts, RouterStatistics
from dsabench.model.short_convolution import ShortConvolution
from dsabench.ops import add_norm, embed, linear_cross_entropy
from dsabench.ops.profile_labels import part
from dsabench.spec.run import RunSpec


@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass needs beside its tokens. Fields without a text are those of AttentionContext."""

    stage: Stage = "sparse"
    step: Tensor | None = None
    """The training step, one int64 on the device; not looked at in eval mode."""

    document_ids_BT: Tensor | None = None
    most_documents: int | None = None
    scored_BT: Tensor | None = None
    """Which targets count in the loss; None where all do."""

    capture: dict[int, Selection] | None = None
    whole_mass: bool = True
    top_k: int | None = None
    losses: bool = True
    mean_load: Callable[[Tensor], Tensor] | None = None
    """In training by several processes: the mean over all of them of the experts' load of this one's tokens."""

    def context(self, positions_T: Tensor, training: bool) -> AttentionContext:
        """What the layers of this pass share; a new one for each pass, because it keeps what they compute."""
        return AttentionContext(
            positions_T,
            stage=self.stage,
            document_ids_BT=self.document_ids_BT,
            capture=self.capture,
            step=self.step if training else None,
            whole_mass=self.whole_mass,
            most_documents=None if self.document_ids_BT is None else self.most_documents,
            top_k=self.top_k,
            losses=self.losses,
        )


PLAIN = ForwardPass()
"""The sparse stage, one document a window, nothing captured."""


@dataclass(frozen=True)
class ModelOutput:
    """The output of one forward pass."""

    logits_BTV: Tensor
    """Scores of the next token."""

    attention_loss: Tensor | None
    """Mean over layers of the attention's own loss (an indexer's KL), where other trainers add them; None when the
    variant has none."""

    balance_loss: Tensor
    """Mean over layers of the router's load-balancing loss, where other trainers add them."""

    expert_load_E: Tensor
    """Share of routes of each expert, mean over layers."""

    router_entropy: Tensor
    """Entropy of the router's softmax in nats, mean over tokens and layers."""


@dataclass(frozen=True)
class Features:
    """The output before the product with the output layer. Fields without a text are those of ModelOutput."""

    x_BTD: Tensor
    """The normalised residual stream."""

    attention_loss: Tensor | None
    balance_loss: Tensor
    expert_load_E: Tensor
    router_entropy: Tensor

    def rest(self) -> dict[str, Any]:
        """The other fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "x_BTD"}


class Block(nn.Module):
    """x + attention(norm(x)), then x + experts(norm(x)); the last addition is left to the next block or norm. Where the
    spec asks for it, a short convolution stands between the first norm and attention."""

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(spec.model.d_model, eps=spec.model.norm_eps)
        taps = spec.model.short_convolution
        self.short_convolution = None if taps is None else ShortConvolution(spec.model.d_model, taps)
        self.attention = construct(spec, layer)
        self.experts_norm = nn.RMSNorm(spec.model.d_model, eps=spec.model.norm_eps)
        self.experts = MixtureOfExperts(spec.model)

    def forward(
        self,
        x_BTD: Tensor,
        pending_BTD: Tensor | None,
        context: AttentionContext,
        dropout: float,
        mean_load: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, RouterStatistics]:
        """(x, a pending addition to it) -> (x, pending addition, the attention's own loss, the router's statistics) of
        this layer. An addition is left pending so that it is one pass over memory together with the norm after it."""
        x_BTD, normed_BTD = add_norm(x_BTD, pending_BTD, self.attention_norm)
        with part("attention"):
            if self.short_convolution is not None:
                with part("short convolution"):
                    normed_BTD = self.short_convolution(normed_BTD, context)
            mixed = self.attention(normed_BTD, context)
        x_BTD, normed_BTD = add_norm(x_BTD, F.dropout(mixed.out_BTD, dropout), self.experts_norm)
        with part("experts"):
            fed_BTD, router = self.experts(normed_BTD, mean_load)
        return x_BTD, F.dropout(fed_BTD, dropout), mixed.aux_loss, router


class Transformer(nn.Module):
    """Token ids (B, T) to next-token logits (B, T, V). `build` makes one with initial weights."""

    def __init__(self, spec: RunSpec, vocab_size: int) -> None:
        super().__init__()
        self.spec = spec  # of a model in a slot, spec.seed is the first run's
        self.vocab_size = vocab_size if spec.model.vocab_size is None else spec.model.vocab_size
        """Rows of embedding and output layer: ids of the tokenizer, unless the spec asks for more."""
        self.embedding = nn.Embedding(self.vocab_size, spec.model.d_model)
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.model.n_layers))
        self.norm = nn.RMSNorm(spec.model.d_model, eps=spec.model.norm_eps)
        self.head = None if spec.model.tied_head else nn.Linear(spec.model.d_model, self.vocab_size, bias=False)

    @property
    def head_VD(self) -> Tensor:
        """The matrix of the output layer."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(self, tokens_BT: Tensor, forward_pass: ForwardPass = PLAIN) -> ModelOutput:
        """Logits at t depend on tokens 0..t of the same row (and document) alone."""
        features = self.features(tokens_BT, forward_pass)
        return ModelOutput(logits_BTV=F.linear(features.x_BTD, self.head_VD), **features.rest())

    def training_losses(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        forward_pass: ForwardPass = PLAIN,
        call: Callable[..., Any] = Block.__call__,
    ) -> tuple[Tensor, Features]:
        """Mean cross-entropy of the scored targets in nats, and the features; no logits are kept. call(block, *inputs)
        calls a block, so that a training step can have it compiled or recomputed."""
        with part("rest of the model"):
            features = self.features(tokens_BT, forward_pass, call)
        with part("logits and loss"):
            scored_N = None if forward_pass.scored_BT is None else forward_pass.scored_BT.flatten()
            x_ND, targets_N = features.x_BTD.flatten(0, 1), targets_BT.flatten()
            loss = linear_cross_entropy(x_ND, self.head_VD, targets_N, scored_N)
        return loss, features

    def features(
        self,
        tokens_BT: Tensor,
        forward_pass: ForwardPass = PLAIN,
        call: Callable[..., Any] = Block.__call__,
    ) -> Features:
        """All but the product with the output layer."""
        dropout = self.spec.model.dropout if self.training else 0.0
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        context = forward_pass.context(positions_T, self.training)
        context.scheduled = bool(self.spec.attention.key_changes())
        with part("attention"):
            for block in self.layers():
                block.attention.prepare(context)
                if block.short_convolution is not None:
                    block.short_convolution.prepare(context)
        x_BTD = F.dropout(embed(tokens_BT, self.embedding.weight, self.spec.model.embedding_scale), dropout)
        pending_BTD: Tensor | None = None
        attention_losses, routers = [], []
        for block in self.layers():
            x_BTD, pending_BTD, own_loss, router = call(
                block, x_BTD, pending_BTD, context, dropout, forward_pass.mean_load
            )
            attention_losses += [own_loss] if own_loss is not None else []
            routers.append(router)
        return Features(
            x_BTD=add_norm(x_BTD, pending_BTD, self.norm)[1],
            attention_loss=torch.stack(attention_losses).mean() if attention_losses else None,
            balance_loss=torch.stack([router.balance_loss for router in routers]).mean(),
            expert_load_E=torch.stack([router.load_E for router in routers]).mean(0),
            router_entropy=torch.stack([router.entropy for router in routers]).mean(),
        )

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def own_parameters_by_layer(self) -> dict[int, dict[str, nn.Parameter]]:
        """The parameters that only the attention's own loss trains (indexers), by layer and their full names."""
        found: dict[int, dict[str, nn.Parameter]] = {}
        for layer, block in enumerate(self.layers()):
            own = block.attention.own_parameters()
            prefix = f"blocks.{layer}.attention."
            found[layer] = {f"{prefix}{name}": p for name, p in block.attention.named_parameters() if name in own}
        return found

    def attention_own_parameters(self) -> dict[str, nn.Parameter]:
        """Those of all layers, by their full names."""
        return {name: p for own in self.own_parameters_by_layer().values() for name, p in own.items()}


def build(spec: RunSpec, vocab_size: int) -> Transformer:
    """A Transformer on the CPU in fp32 with its initial weights drawn.

    Each parameter is drawn from a generator keyed by seed and its name, so a parameter that two variants share starts
    with the same bits in both. Raises SpecError where spec.model.vocab_size is less than vocab_size.
    """
    model = Transformer(spec, spec.model.rows(vocab_size))
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            continue
        generator = torch.Generator().manual_seed(_key(spec.seed, name))
        nn.init.normal_(parameter, std=_initial_std(name, parameter, spec), generator=generator)
    return model


def outline(spec: RunSpec, vocab_size: int) -> Transformer:
    """A Transformer on the meta device, without memory or values, for counting its parameters and FLOPs."""
    with torch.device("meta"), _Uninitialised():
        return Transformer(spec, vocab_size)


class _Uninitialised(TorchFunctionMode):
    """Skips PyTorch's initialisers while inside: for a meta tensor they import its compiler, which takes seconds."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return function(*args, **given)


def _initial_std(name: str, parameter: Tensor, spec: RunSpec) -> float:
    """fan_in^-1/2, so that variance stays 1; smaller where an output is added to the residual stream."""
    if name == "embedding.weight":
        # Where it is tied: the final norm makes |x| = sqrt(D). At the start x points along the embedding of its own
        # token, so that the logit of that token is D std. At the default, std = 1/D, it is 1, and the first loss is
        # ln V for every V and D. At the usual 0.02 the token would be exp(0.02 D) times as probable as others. Embedded
        # input tokens are multiplied by 1 / std.
        return 1.0 / spec.model.embedding_scale
    if name == "head.weight":  # logits then start with standard deviation D^-1/2, near ln V as well
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
        for flops in (block.attention.flops(stage), MixtureOfExperts.flops(spec.model, spec.length)):
            for item, value in flops.items():
                items[item] = items.get(item, 0.0) + value
    if (taps := spec.model.short_convolution) is not None:
        items["short convolution"] = spec.model.n_layers * ShortConvolution.flops(spec.length, spec.model.d_model, taps)
    items["logits"] = 6.0 * spec.length * spec.model.d_model * model.vocab_size
    if stage == "dense" and spec.attention.warmup_freezes_backbone():  # forward only, a third; the indexer learns
        items = {item: value if item.startswith("indexer") else value / 3 for item, value in items.items()}
    return items
