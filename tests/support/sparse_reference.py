"""Inputs and fp64 answers for the tests of the sparse kernels, on a CPU and on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsabench.attention.dsa import reference
from dsabench.attention.dsa.triton.attend import attend
from dsabench.attention.dsa.triton.kl import sparse_kl
from dsabench.attention.dsa.triton.kl_dense import dense_kl
from dsabench.attention.dsa.triton.top_k import top_k
from dsabench.attention.dsa.triton.unions import Unions


class Sizes(NamedTuple):
    """B, T, H, G, D, J, I, k and the chance that a token starts a document."""

    batch: int = 1
    length: int = 17
    heads: int = 2
    groups: int = 1
    width: int = 16
    index_heads: int = 2
    index_width: int = 16
    k: int = 5
    documents: float = 0.0


class Inputs(NamedTuple):
    """Leaves that require gradients: the attention's q, k, v, the indexer's q, k, w; then what needs none."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_index: Tensor
    k_index: Tensor
    w_index: Tensor
    d_out: Tensor
    ids: Tensor | None

    def to(self, dtype: torch.dtype) -> Inputs:
        """Fresh leaves in dtype."""
        leaves = [x.detach().to(dtype).requires_grad_() for x in self[:6]]
        return Inputs(*leaves, self.d_out.to(dtype), self.ids)


def draw(sizes: Sizes, seed: int, device: str = "cpu", grid: bool = True) -> Inputs:
    """fp64. On the grid the indexer's numbers are few small multiples of a power of two: their scores are exact in
    fp32 and bf16 products, and equal scores are everywhere, exact zeros among them. Off it all are bf16 numbers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().double().to(device)

    def coarse(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).double().to(device) / 2 if grid else normal(*shape)

    b, t, h, g, d, j, i, _, documents = sizes
    ids = (torch.rand(b, t, generator=generator) < documents).cumsum(1).to(device) if documents else None
    leaves = [
        normal(b, t, h, d),
        normal(b, t, g, d),
        normal(b, t, g, d),
        coarse(b, t, j, i),
        coarse(b, t, i),
        coarse(b, t, j) / 4,
    ]
    return Inputs(*(x.requires_grad_() for x in leaves), normal(b, t, h, d), ids)


def scores_of(x: Inputs) -> Tensor:
    """The index scores (B, T, S), with gradient."""
    return reference.index_scores(x.q_index, x.k_index, x.w_index)


def allowed_by(x: Inputs) -> Tensor:
    return reference.allowed_keys(x.q.shape[1], x.ids, x.q.device)


def ascending(selected_BTK: Tensor) -> Tensor:
    """Each row's indices in ascending order, empty slots last, int32: as the kernels give them."""
    last = torch.iinfo(torch.int32).max
    order = torch.where(selected_BTK < 0, last, selected_BTK.int()).sort(-1).values
    return torch.where(order == last, reference.EMPTY, order)


def expected_sparse(x: Inputs, selected_BTK: Tensor) -> list[Tensor]:
    """Output, KL loss and the six gradients of sum(out d_out) + 3 loss over this selection, in fp64."""
    x = x.to(torch.float64)
    out, p = reference.attention(x.q, x.k, x.v, selected_BTK.long())
    slots = scores_of(x).gather(-1, selected_BTK.clamp(min=0).long())
    loss = reference.indexer_kl(slots, p, selected_BTK != reference.EMPTY)
    ((out * x.d_out).sum() + 3 * loss).backward()
    return [out.detach(), loss.detach(), *(leaf.grad for leaf in x[:6])]


def found_sparse(
    x: Inputs, selected_BTK: Tensor, index_lse: Tensor | None, deterministic: bool, unions: Unions | None = None
) -> list[Tensor]:
    """The same by the kernels, on the leaves of x."""
    out, lse = attend(x.q, x.k, x.v, selected_BTK, deterministic, ascending=True, unions=unions)
    loss = sparse_kl(x.q, x.k, lse, x.q_index, x.k_index, x.w_index, selected_BTK, index_lse, deterministic, unions)
    ((out * x.d_out).float().sum() + 3 * loss).backward()
    return [out.detach(), loss.detach(), *(leaf.grad for leaf in x[:6])]


def expected_latent(x: Inputs, selected_BTK: Tensor, value: int, scale: float) -> list[Tensor]:
    """expected_sparse, without v's gradient, where the first `value` numbers of a key are its value."""
    x = x.to(torch.float64)
    out, p = reference.attention(x.q, x.k, x.k[..., :value], selected_BTK.long(), scale)
    slots = scores_of(x).gather(-1, selected_BTK.clamp(min=0).long())
    loss = reference.indexer_kl(slots, p, selected_BTK != reference.EMPTY)
    ((out * x.d_out[..., :value]).sum() + 3 * loss).backward()
    return [out.detach(), loss.detach(), *(leaf.grad for leaf in (*x[:2], *x[3:6]))]


def found_latent(
    x: Inputs,
    selected_BTK: Tensor,
    value: int,
    scale: float,
    deterministic: bool,
    unions: Unions | None = None,
) -> list[Tensor]:
    """The same by the kernels, on the leaves of x."""
    out, lse = attend(x.q, x.k, None, selected_BTK, deterministic, True, unions, scale, value)
    index = (x.q_index, x.k_index, x.w_index)
    loss = sparse_kl(x.q, x.k, lse, *index, selected_BTK, None, deterministic, unions, scale, value)
    ((out * x.d_out[..., :value]).float().sum() + 3 * loss).backward()
    return [out.detach(), loss.detach(), *(leaf.grad for leaf in (*x[:2], *x[3:6]))]


def expected_dense_kl(x: Inputs) -> list[Tensor]:
    """The warm-up stage's loss and the gradients of 3 loss to the indexer's q, k, w, in fp64."""
    x = x.to(torch.float64)
    allowed = allowed_by(x)
    k = x.k.repeat_interleave(x.q.shape[2] // x.k.shape[2], dim=2)
    logits = torch.einsum("bthd,bshd->bths", x.q, k).detach() * x.q.shape[-1] ** -0.5
    keep = allowed[..., None, :]
    target = logits.masked_fill(~keep, -torch.inf).softmax(-1).mean(2)
    loss = reference.indexer_kl(scores_of(x), target, allowed)
    (3 * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in x[3:6])]


def found_dense_kl(x: Inputs, deterministic: bool) -> list[Tensor]:
    loss = dense_kl(x.q, x.k, x.q_index, x.k_index, x.w_index, x.ids, None, deterministic)
    (3 * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in x[3:6])]


def selection(x: Inputs, k: int) -> tuple[Tensor, Tensor]:
    return top_k(x.q_index.detach(), x.k_index.detach(), x.w_index.detach(), k, x.ids)


def expected_selection(x: Inputs, k: int) -> Tensor:
    return ascending(reference.select_top_k(scores_of(x).detach(), allowed_by(x), k))


def expected_unions(selected_BTK: Tensor, queries: int) -> list[dict[int, int]]:
    """Of each group of neighbours: key -> its members' bits, in key order."""
    groups = []
    for rows in selected_BTK.tolist():
        for t0 in range(0, len(rows), queries):
            group: dict[int, int] = {}
            for j, row in enumerate(rows[t0 : t0 + queries]):
                for s in row:
                    if 0 <= s <= t0 + j:
                        group[s] = group.get(s, 0) | 1 << j
            groups.append(dict(sorted(group.items())))
    return groups


def found_unions(unions: Unions) -> list[dict[int, int]]:
    """The same of what the kernel wrote; nothing of a group whose queries go by themselves."""
    return [
        {word & 0xFFFFFF: word >> 24 & 0xFF for word in words[:size]}
        for words, size in zip(unions.words_UC.tolist(), unions.sizes_U.tolist(), strict=True)
    ]


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; the root mean square error where zeros are expected. NaN stays NaN."""
    size, norm = expected.numel() ** 0.5, float(expected.norm())
    return float((found.double() - expected).norm()) / (norm if norm > 1e-9 * size else size)
