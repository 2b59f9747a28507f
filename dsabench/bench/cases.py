"""The timed cases: a layer's forward and backward pass by one implementation, made anew for every length.

Dense attention by each backend of PyTorch's scaled_dot_product_attention: on K and V copied to all query heads
beforehand, untimed (`dense-flash`), and on those of the KV heads (`dense-flash-gqa`); a sliding window, and all causal
keys, by FlexAttention.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dsabench.bench.document import Settings, StageName
from dsabench.bench.inputs import Inputs
from dsabench.bench.roofline import Cost, Layer

Family = Literal["dense", "window", "dsa", "other"]


class PartOf(NamedTuple):
    """A part of a layer, to be timed by itself."""

    name: str
    run: Callable[[], Any]
    cost: Cost


class Case(abc.ABC):
    """An implementation: `setup` once a length, then `forward` and `backward` as often as wanted."""

    name: str
    family: ClassVar[Family]
    stage: StageName = "sparse"
    optional: ClassVar[bool] = False
    """Whether it is left out unless its name is given."""

    unlike: ClassVar[str | None] = None
    """What it computes, where that is nothing that the reference computes; its results are then not compared."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.leaves: list[Tensor] = []
        self.gradients_in: list[Tensor] = []

    def why_not(self, length: int) -> str | None:
        """The reason why it cannot run at this length on this device; None when it can."""
        return None

    any_of_ties: ClassVar[bool] = False
    """Whether of keys with equal scores it may select any; it is then checked where there are none."""

    @property
    def comparable(self) -> bool:
        """True when its times say something about the device."""
        return True

    @abc.abstractmethod
    def cost(self, length: int) -> Cost:
        """FLOPs and bytes that the method needs, forward and backward."""

    @abc.abstractmethod
    def scratch_bytes(self, length: int) -> float:
        """Rough peak memory. On a CPU an implementation that needs more than is free is not begun: the system would end
        the process."""

    @abc.abstractmethod
    def setup(self, x: Inputs) -> None:
        """Copy x in the layout that the implementation takes, and make what layers share (a mask). Not timed."""

    @abc.abstractmethod
    def forward(self) -> tuple[Tensor, ...]:
        """The output, and for DSA the KL loss."""

    def backward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of all leaves."""
        return torch.autograd.grad(outputs, self.leaves, self.gradients_in)

    @abc.abstractmethod
    def results(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Outputs and gradients by name, in the layouts of Inputs."""

    def seen(self, x: Inputs) -> Inputs:
        """The inputs that the reference is given to compute what this one computes."""
        return x

    def wanted(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reference's results in the terms of this one's."""
        return results

    def parts(self) -> list[PartOf]:
        """Its parts, after `setup`; none when it has none that are timed."""
        return []

    def release(self) -> None:
        """Let go of all tensors."""
        self.leaves, self.gradients_in = [], []

    def _layer(self, length: int) -> Layer:
        return Layer(self.settings, length)

    def _number(self) -> int:
        return 2 if self.settings.dtype == "bf16" else 4


def head_major(x_BTHD: Tensor) -> Tensor:
    """A copy as (B, H, T, D), contiguous."""
    return x_BTHD.detach().transpose(1, 2).clone(memory_format=torch.contiguous_format)


class _HeadMajor(Case):
    """Attention alone, on leaves q, k, v of (B, H, T, D); k and v of all heads where `expanded`."""

    expanded: bool

    def setup(self, x: Inputs) -> None:
        """k and v are repeated for the heads that share them where the implementation wants it."""
        q, k, v = (head_major(part) for part in x[:3])
        if self.expanded:
            k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
        self.leaves = [part.requires_grad_() for part in (q, k, v)]
        self.gradients_in = [head_major(x.d_out_BTHD)]

    @property
    def gqa(self) -> bool:
        """True when the implementation itself shares the KV heads."""
        return not self.expanded and self.settings.heads != self.settings.kv_heads

    def results(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Gradients of repeated heads are summed in fp64."""
        d_q, *rest = gradients
        if self.expanded:
            rest = [d.double().unflatten(1, (self.settings.kv_heads, -1)).sum(2) for d in rest]
        found = dict(zip(("out", "d q", "d k", "d v"), (outputs[0], d_q, *rest), strict=True))
        return {name: x.detach().transpose(1, 2) for name, x in found.items()}

    def scratch_bytes(self, length: int) -> float:
        """q, k, v, out, and their gradients."""
        s = self.settings
        return 8.0 * s.batch * length * s.heads * s.head_dim * self._number()


class Dense(_HeadMajor):
    """F.scaled_dot_product_attention, causal, by one backend."""

    family = "dense"

    def __init__(
        self, settings: Settings, device: torch.device, label: str, backend: SDPBackend, expanded: bool
    ) -> None:
        super().__init__(settings, device)
        self.backend, self.expanded = backend, expanded
        self.name = f"dense-{label}" + ("" if expanded else "-gqa")

    def why_not(self, length: int) -> str | None:
        """None: the check shows whether a backend takes these heads and this dtype."""
        if self.device.type == "cpu" and self.backend not in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
            return "this backend needs a CUDA GPU"
        return None

    def cost(self, length: int) -> Cost:
        """Cost of the causal pairs alone."""
        return self._layer(length).dense()

    def scratch_bytes(self, length: int) -> float:
        """`math` keeps L x L scores of all heads: probabilities, their gradient and copies."""
        s = self.settings
        whole = 4.0 * s.batch * s.heads * length**2 * self._number() if self.backend == SDPBackend.MATH else 0.0
        return super().scratch_bytes(length) + whole

    def forward(self) -> tuple[Tensor, ...]:
        """(B, H, T, D)."""
        with sdpa_kernel(self.backend):
            q_BHTD, k_BHSD, v_BHSD = self.leaves
            return (F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True, enable_gqa=self.gqa),)


class Window(_HeadMajor):
    """Attention to the last k tokens, by a compiled FlexAttention that skips whole blocks outside the window."""

    name = "window-flex"
    family: ClassVar[Family] = "window"
    expanded = False

    def why_not(self, length: int) -> str | None:
        """A reason everywhere but on a CUDA GPU, where its backward pass is a kernel."""
        return None if self.device.type == "cuda" else "FlexAttention's backward pass needs a CUDA GPU"

    def cost(self, length: int) -> Cost:
        """Cost of the pairs within the window."""
        return self._layer(length).window()

    def setup(self, x: Inputs) -> None:
        """Also make the block mask and the compiled function. Dynamo forgets here what it compiled for other lengths,
        because after a number of recompilations it would silently run uncompiled."""
        from torch.nn.attention.flex_attention import flex_attention

        super().setup(x)
        torch._dynamo.reset()
        self.attend: Any = torch.compile(flex_attention, dynamic=False)
        self.mask = window_mask(x.q_BTHD.shape[1], self.width(x.q_BTHD.shape[1]), self.device)

    def width(self, length: int) -> int:
        """Keys that a query sees, itself among them."""
        return self.settings.top_k

    def forward(self) -> tuple[Tensor, ...]:
        """(B, H, T, D)."""
        return (self.attend(*self.leaves, block_mask=self.mask, enable_gqa=self.gqa),)


class FlexCausal(Window):
    """Dense attention by the same compiled FlexAttention."""

    name = "dense-flex"
    family = "dense"
    optional = True

    def cost(self, length: int) -> Cost:
        """Cost of the causal pairs alone."""
        return self._layer(length).dense()

    def width(self, length: int) -> int:
        """All keys before it."""
        return length


def window_mask(length: int, window: int, device: torch.device, block: int = 128) -> Any:
    """FlexAttention's BlockMask of 0 <= t - s < window, without an L x L mask on the way."""
    from torch.nn.attention.flex_attention import BlockMask

    n = -(-length // block)
    i = torch.arange(n, device=device)
    first_QK = (i[:, None] - i[None, :]) * block  # t - s of the blocks' first entries
    some_QK = (first_QK + block - 1 >= 0) & (first_QK - (block - 1) < window)
    every_QK = (first_QK - (block - 1) >= 0) & (first_QK + block - 1 < window)
    every_QK &= ((i[:, None] + 1) * block <= length) & ((i[None, :] + 1) * block <= length)

    def within(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (s <= t) & (t - s < window)

    def listed(which_QK: Tensor) -> tuple[Tensor, Tensor]:
        order = which_QK.int().argsort(dim=1, descending=True, stable=True)
        return which_QK.sum(1).int()[None, None], order.int()[None, None]

    return BlockMask.from_kv_blocks(
        *listed(some_QK & ~every_QK),
        *listed(every_QK),
        BLOCK_SIZE=block,
        mask_mod=within,
        seq_lengths=(length, length),
    )


BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def dense_cases(settings: Settings, device: torch.device) -> list[Case]:
    """Every backend; those that share KV heads by themselves that way too, where there is something to share."""
    found: list[Case] = []
    for label, backend in BACKENDS.items():
        found.append(Dense(settings, device, label, backend, expanded=True))
        if settings.heads != settings.kv_heads and label in ("flash", "cudnn"):
            found.append(Dense(settings, device, label, backend, expanded=False))
    return found
