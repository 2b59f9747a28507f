"""Sparse attention of other packages, timed where they are installed and named.

attention-gym has DSA's scores, top-k and attention, with one tensor for keys and values (K = V) and no KL loss.
flash-linear-attention has NSA: blocks of 64 keys that a compressed attention chooses, and that compressed attention.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, K selected slots.
"""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import torch
from torch import Tensor

from dsabench.bench.cases import Case
from dsabench.bench.document import Settings
from dsabench.bench.inputs import Inputs
from dsabench.bench.roofline import Cost

BLOCK, MOST_BLOCKS = 64, 32
"""Keys of NSA's blocks, and the most blocks that its top-k keeps of this size."""


class Peer(Case):
    """An implementation of another package."""

    optional = True
    package: ClassVar[str]
    """The package to import, and the one to install."""
    wheel: ClassVar[str]

    def why_not(self, length: int) -> str | None:
        """The reason why it cannot run: the package, the device or the sizes."""
        if importlib.util.find_spec(self.package) is None:
            return f"it needs the package {self.wheel}, which is not installed (pip install {self.wheel})"
        if self.device.type != "cuda":
            return "its kernels need a CUDA GPU"
        if self.settings.deterministic:
            return "nothing is known of the bits of its gradients"
        return self.unfit()

    def unfit(self) -> str | None:
        """The reason why it does not take these sizes; None when it does."""
        raise NotImplementedError

    def scratch_bytes(self, length: int) -> float:
        """Roughly that of our kernels: inputs, gradients and indices."""
        s = self.settings
        return float(s.batch * length) * (24.0 * s.heads * s.head_dim + 11.0 * s.top_k)


class GatherGym(Peer):
    """attention-gym: lightning_indexer and gather_attn. Leaves: q (B, H, T, D) and the keys that are values too."""

    name = "dsa-gym"
    family = "dsa"
    any_of_ties = True
    package, wheel = "attn_gym", "attn-gym"

    def unfit(self) -> str | None:
        """One KV head, bf16."""
        if self.settings.kv_heads != 1:
            return f"it takes one KV head, and --kv-heads is {self.settings.kv_heads}"
        return None if self.settings.dtype == "bf16" else "it takes bf16 alone"

    def cost(self, length: int) -> Cost:
        """Scores, top-k and attention; its one gather is counted as two."""
        layer = self._layer(length)
        forward, backward = layer.sparse_attention()
        return layer.selection().plus(forward).plus(backward)

    def setup(self, x: Inputs) -> None:
        """Values are the keys."""
        self.leaves = [part.detach().transpose(1, 2).contiguous().requires_grad_() for part in (x.q_BTHD, x.k_BSGD)]
        self.index = tuple(part.detach().clone() for part in x[3:6])
        self.gradients_in = [x.d_out_BTHD.detach().transpose(1, 2).contiguous()]

    def forward(self) -> tuple[Tensor, ...]:
        """(B, H, T, D)."""
        from attn_gym.sparse import gather_attn, lightning_indexer

        q_BHTD, kv_BGSD = self.leaves
        selected_BTK = lightning_indexer(*self.index, self.settings.top_k, causal=True)
        return (gather_attn(q_BHTD, kv_BGSD, kv_BGSD, selected_BTK, sliding_window_size=0),)

    def results(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Output, and the gradients of q and of what is key and value."""
        found = dict(zip(("out", "d q", "d kv"), (outputs[0], *gradients), strict=True))
        return {name: x.detach().transpose(1, 2) for name, x in found.items()}

    def seen(self, x: Inputs) -> Inputs:
        """K = V."""
        return x._replace(v_BSGD=x.k_BSGD)

    def wanted(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of what is key and value is the sum of both."""
        return {"out": results["out"], "d q": results["d q"], "d kv": results["d k"] + results["d v"]}

    def release(self) -> None:
        """Also the indexer's inputs."""
        super().release()
        self.index = ()


class NSA(Peer):
    """flash-linear-attention: NSA with all gates 1 and no window, over as many keys as DSA keeps."""

    name = "nsa-fla"
    family = "other"
    unlike = "NSA"
    package, wheel = "fla", "fla-core"

    def unfit(self) -> str | None:
        """16 query heads to a KV head or more, a power of two; k a number of blocks that is a power of two."""
        s = self.settings
        sharing, blocks = s.heads // s.kv_heads, s.top_k // BLOCK
        if sharing < 16 or sharing & (sharing - 1):
            return f"it takes 16, 32, ... query heads to a KV head, and these are {sharing}"
        if s.top_k % BLOCK or not 1 <= blocks <= MOST_BLOCKS or blocks & (blocks - 1):
            return f"it takes --top-k of 64, 128, ... to {BLOCK * MOST_BLOCKS}, and not {s.top_k}"
        return None

    def cost(self, length: int) -> Cost:
        """Attention to k keys, and to the means of all blocks before."""
        layer = self._layer(length)
        parts = [*layer.attention(layer.chosen), *layer.attention(layer.pairs / BLOCK)]
        return parts[0].plus(parts[1]).plus(parts[2]).plus(parts[3])

    def setup(self, x: Inputs) -> None:
        """As the inputs are: (B, T, H, D)."""
        self.leaves = [part.detach().clone().requires_grad_() for part in x[:3]]
        self.gradients_in = [x.d_out_BTHD.detach().clone()]
        self.gate_BTH = torch.ones(x.q_BTHD.shape[:3], dtype=x.q_BTHD.dtype, device=self.device)

    def forward(self) -> tuple[Tensor, ...]:
        """(B, T, H, D)."""
        from fla.ops.nsa import parallel_nsa

        gates, blocks = {"g_cmp": self.gate_BTH, "g_slc": self.gate_BTH}, self.settings.top_k // BLOCK
        return (parallel_nsa(*self.leaves, **gates, block_counts=blocks, block_size=BLOCK),)

    def results(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Output and three gradients."""
        return dict(zip(("out", "d q", "d k", "d v"), (outputs[0].detach(), *gradients), strict=True))

    def release(self) -> None:
        """Also the gates."""
        super().release()
        self.gate_BTH = torch.empty(0)


def peer_cases(settings: Settings, device: torch.device) -> list[Case]:
    """All of them, installed or not."""
    return [GatherGym(settings, device), NSA(settings, device)]
