"""The least that each part of a layer needs, whatever an implementation spends: FLOPs and bytes.

    P = B L (L + 1) / 2 causal pairs; n = B sum_t min(t + 1, k) selected ones; e bytes a number; per layer
    dense attention     4 P H D forward, 10 P H D backward (P computed again: five products for the forward's two)
    sparse attention    4 n H D          10 n H D
    index scores        2 P J I
    KL loss             2 n H D (the target's scores again) + 6 n J I; P in place of n in the dense warm-up stage

The indexer's projections and rotations belong to the model, not to this layer.
"""

from __future__ import annotations

from typing import NamedTuple

from dsabench.bench.document import Settings, StageName


class Cost(NamedTuple):
    """FLOPs; bytes if each input of a pass is read once and each output written once; bytes gathered and scattered."""

    flops: float
    bytes: float
    gathered: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """The cost of both, one after the other."""
        return Cost(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Layer:
    """The costs of a layer at one length."""

    def __init__(self, settings: Settings, length: int) -> None:
        self.settings = settings
        self.rows = settings.batch * length
        self.pairs = settings.batch * pairs(length, length)
        self.chosen = settings.batch * pairs(length, settings.top_k)
        self.width = 2 if settings.dtype == "bf16" else 4
        self.slots = 4.0 * self.rows * min(settings.top_k, length)

    def attention(self, n: float) -> tuple[Cost, Cost]:
        """Forward and backward over n pairs: q, k, v in and out; then q, k, v, out, dOut in and dQ, dK, dV out."""
        s = self.settings
        unit = n * s.heads * s.head_dim
        number = self.width * self.rows * s.head_dim
        return (
            Cost(4.0 * unit, number * 2.0 * (s.heads + s.kv_heads)),
            Cost(10.0 * unit, number * 4.0 * (s.heads + s.kv_heads)),
        )

    def dense(self) -> Cost:
        """Dense causal attention, both ways."""
        forward, backward = self.attention(self.pairs)
        return forward.plus(backward)

    def window(self) -> Cost:
        """A sliding window of k."""
        forward, backward = self.attention(self.chosen)
        return forward.plus(backward)

    def selection(self) -> Cost:
        """Scores of all causal pairs, the indices out; top-k's comparisons are no FLOPs of a matrix unit."""
        s = self.settings
        return Cost(2.0 * self.pairs * s.indexer_heads * s.indexer_dim, self._indexer() + self.slots)

    def unions(self) -> Cost:
        """The indices in, and no more than 3 bytes for each of them out; no matrix unit."""
        return Cost(0.0, 1.75 * self.slots)

    def sparse_attention(self) -> tuple[Cost, Cost]:
        """Forward: K and V gathered. Backward: also read, and dK and dV added to in fp32: 8 bytes a number each."""
        s = self.settings
        forward, backward = self.attention(self.chosen)
        numbers = self.chosen * s.kv_heads * s.head_dim
        read = 2.0 * self.width * numbers
        return (
            forward.plus(Cost(0.0, self.slots, read)),
            backward.plus(Cost(0.0, self.slots, read + 16.0 * numbers)),
        )

    def kl(self, stage: StageName) -> Cost:
        """The KL loss and its gradients to the indexer, whose scores are recomputed."""
        s = self.settings
        n = self.chosen if stage == "sparse" else self.pairs
        flops = 2.0 * n * s.heads * s.head_dim + 6.0 * n * s.indexer_heads * s.indexer_dim
        moved = self.width * self.rows * s.head_dim * (s.heads + s.kv_heads) + 2.0 * self._indexer()
        if stage == "dense":
            return Cost(flops, moved)
        gathered = n * (self.width * (s.kv_heads * s.head_dim + s.indexer_dim) + 8.0 * s.indexer_dim)
        return Cost(flops, moved + self.slots, gathered)

    def dsa(self, stage: StageName) -> Cost:
        """The whole of DSA: selection, attention and KL loss."""
        if stage == "dense":
            s = self.settings
            scores = Cost(2.0 * self.pairs * s.indexer_heads * s.indexer_dim, 0.0)
            return self.dense().plus(scores).plus(self.kl("dense"))
        forward, backward = self.sparse_attention()
        return self.selection().plus(forward).plus(backward).plus(self.kl("sparse"))

    def _indexer(self) -> float:
        """Bytes of the indexer's q, k and w."""
        s = self.settings
        return self.width * self.rows * float(s.indexer_heads * s.indexer_dim + s.indexer_dim + s.indexer_heads)


def pairs(length: int, k: int) -> float:
    """sum over t < L of min(t + 1, k)."""
    k = min(k, length)
    return k * (k + 1) / 2 + (length - k) * k
