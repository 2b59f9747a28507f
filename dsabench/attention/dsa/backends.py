"""The choice of DSA's backend, which `attention.backend: auto` leaves open, and the sizes that the kernels take.

It imports no Triton, so that a machine without it gets a message in place of an ImportError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dsabench.errors import SpecError

if TYPE_CHECKING:
    from dsabench.spec.model_settings import LatentSpec

Backend = Literal["reference", "masked", "triton"]

CROSSOVER = {"shared": ((1024, 16), (2048, 4)), "own": ((8192, 8),)}
"""(least length, divisor): `auto` takes the sparse kernels for windows of at least that length, where a query keeps at
most length / divisor keys. `shared`: at least SHARING query heads share a KV head, and one gather serves them all.

Measured, bf16, D = 64, milliseconds of masked / kernels. A step of 6 layers, d_model 512, 8 heads on one KV head, 8
windows, H200: 9.55 / 7.31 at L = 1024, k = 64, of an indexer that has not learnt yet. A layer forward and backward, 16
heads, k = 256, H100: one KV head 0.25 / 0.24 at L = 1024, 0.78 / 0.40 at 2048, 3.0 / 0.61 at 4096, 56 / 1.1 at 8192; 16
KV heads 0.77 / 2.1 at 2048, 2.9 / 4.3 at 4096, 56 / 9.0 at 8192 (where the masks take 19 GB)."""

LISTS_FROM = {"shared": 1024, "own": 8192}
"""Least length from which `auto` takes the sparse kernels for a selection without an indexer, as in CROSSOVER.

The same step, milliseconds of masked / lists, L = 1024, k = 64: sliding_window 7.47 / 5.00, random 8.04 / 5.84; L =
4096, k = 256: 56.4 / 17.0 and 62.7 / 23.3. Of KV heads of their own nothing was measured: 8192, as above."""

SHARING = 8
"""Query heads to a KV head from which on `shared` holds; measured at 16 and 1 only."""

ELSEWHERE = "it needs a CUDA GPU with Triton, and its tensors are elsewhere"

MOST_KEYS = 4096
"""Largest k of the top-k kernel."""

WIDEST_HEAD = 256
"""Largest width of an attention head or an indexer head that the kernels hold on chip."""

WIDEST_ROTATED = 64
"""Largest width of what a latent has beside its value, its rotated key; the value is at most WIDEST_HEAD wide."""

MOST_INDEX_HEADS = 64
"""Most heads of an indexer, because the KL kernel holds all of a query's heads at once."""


def choose(wanted: str, length: int, k: int, sharing: int, limit: str | None, no_kernels: str | None) -> Backend:
    """The backend of DSA over k of `length` keys.

    wanted: attention.backend. sharing: query heads to a KV head. limit: as `limit_of` says. no_kernels: why Triton
    kernels do not run where the tensors are, None when they do. Raises SpecError when `triton` is wanted and one of
    them forbids it.
    """
    obstacle = limit or no_kernels
    if wanted == "triton":
        if obstacle:
            raise SpecError(f"attention.backend = triton cannot run: {obstacle}; use auto or masked")
        return "triton"
    if wanted == "auto":
        places = CROSSOVER["shared" if sharing >= SHARING else "own"]
        pays = any(length >= least and k * share <= length for least, share in places)
        return "triton" if pays and obstacle is None else "masked"
    return "reference" if wanted == "reference" else "masked"


def choose_lists(wanted: str, length: int, sharing: int, limit: str | None, no_kernels: str | None) -> Backend:
    """The backend of a selection without an indexer; as `choose`."""
    obstacle = limit or no_kernels
    if wanted == "triton" and obstacle:
        raise SpecError(f"attention.selection_backend = triton cannot run: {obstacle}; use auto or masked")
    if wanted == "auto":
        least = LISTS_FROM["shared" if sharing >= SHARING else "own"]
        return "triton" if length >= least and obstacle is None else "masked"
    return "triton" if wanted == "triton" else "masked"


def limit_of_head(head_dim: int) -> str | None:
    """Why the sparse kernels do not take heads of this width; None when they do."""
    return limit_of(1, head_dim, 1, 1)


def limit_of(k: int, head_dim: int, index_heads: int, index_dim: int) -> str | None:
    """Why the sparse kernels do not take these sizes; None when they do. k: keys of a query, at most the length."""
    for what, value, most in (
        ("attention.top_k keeps", k, MOST_KEYS),
        ("a head's width (model.head_width, or model.d_model / model.n_heads) is", head_dim, WIDEST_HEAD),
        ("attention.indexer.head_dim is", index_dim, WIDEST_HEAD),
        ("attention.indexer.n_heads is", index_heads, MOST_INDEX_HEADS),
    ):
        if value > most:
            return f"{what} {value}, and its kernels take at most {most}"
    return None


def limit_of_latent(latent: LatentSpec | None) -> str | None:
    """Why the sparse kernels do not take this latent layout; None when they do, or there is none."""
    if latent is None:
        return None
    for name, value, most in (
        ("kv_lora_rank", latent.kv_lora_rank, WIDEST_HEAD),
        ("qk_rope_head_dim", latent.qk_rope_head_dim, WIDEST_ROTATED),
    ):
        if value > most:
            return f"model.latent.{name} is {value}, and the sparse kernels take at most {most}"
    return None
