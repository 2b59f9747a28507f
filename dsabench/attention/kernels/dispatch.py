"""Which implementation computes DSA: the choice that `attention.backend` leaves open, and what the Triton kernels take.

Imports no Triton: a machine without it must be told so, and not fail.
"""

from __future__ import annotations

from typing import Literal

from dsabench.errors import SpecError

Backend = Literal["reference", "masked", "triton"]

CROSSOVER_LENGTH: int | None = None
"""`auto` takes the sparse kernels from this length on; None never does. They have not run on a GPU yet: until they were
checked and their crossover measured there (predicted: near 16,384 for D = 64, H = 16 on one KV head), only a user who
asks for `triton` gets them."""

CROSSOVER_SHARE = 8
"""`auto` takes the sparse kernels where k <= L / 8: above it a query's gathers cost what a dense product does.
Predicted, not measured, as CROSSOVER_LENGTH."""

MOST_KEYS = 4096
"""Largest k of the top-k kernel."""

WIDEST_HEAD = 256
"""Largest width of an attention head or an indexer head that the kernels hold on chip."""

MOST_INDEX_HEADS = 64
"""Most heads of an indexer: the KL kernel holds all of a query's at once."""


def choose(wanted: str, length: int, k: int, limit: str | None, no_kernels: str | None) -> Backend:
    """The backend of DSA over k of `length` keys.

    wanted: attention.backend. limit: as `limit_of` says. no_kernels: why Triton kernels do not run where the tensors
    are, None when they do. Raises SpecError when `triton` is wanted and one of them forbids it.
    """
    obstacle = limit or no_kernels
    if wanted == "triton":
        if obstacle:
            raise SpecError(f"attention.backend = triton cannot run: {obstacle}; use auto or masked")
        return "triton"
    if wanted == "auto":
        pays = CROSSOVER_LENGTH is not None and length >= CROSSOVER_LENGTH and k * CROSSOVER_SHARE <= length
        return "triton" if pays and obstacle is None else "masked"
    return "reference" if wanted == "reference" else "masked"


def limit_of(k: int, head_dim: int, index_heads: int, index_dim: int) -> str | None:
    """Why the sparse kernels do not take these sizes; None when they do. k: keys of a query, at most the length."""
    for what, value, most in (
        ("attention.top_k keeps", k, MOST_KEYS),
        ("model.d_model / model.n_heads is", head_dim, WIDEST_HEAD),
        ("attention.indexer.head_dim is", index_dim, WIDEST_HEAD),
        ("attention.indexer.n_heads is", index_heads, MOST_INDEX_HEADS),
    ):
        if value > most:
            return f"{what} {value}, and its kernels take at most {most}"
    return None
