"""Settings of the attentions: the base of every variant's, and those of all built-in ones. Loads no torch.

Each class is the spec of the variant named by its `kind`; the module that computes it names the class as its
`spec_class`.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dsabench.spec.indexer_settings import IndexerSpec
from dsabench.spec.strict_model import Spec


def warmup_steps(share: float, steps: int) -> int:
    """Steps of a dense warm-up stage: `share` of all, rounded half up, but never the last step."""
    return min(steps - 1, math.floor(share * steps + 0.5))


def keys_kept(length: int, top_k: int | None, top_k_ratio: float | None) -> int:
    """k = top_k, or else max(1, top_k_ratio * length rounded half up)."""
    if top_k is not None:
        return int(top_k)
    assert top_k_ratio is not None
    return max(1, math.floor(top_k_ratio * length + 0.5))


class AttentionSpec(Spec):
    """Base of every attention variant's spec; a variant adds its own fields and registers the class under its name."""

    kind: str
    """The variant's registered name: `dense`, `dsa`, or the name that a plugin registers."""

    def n_selected(self, length: int) -> int | None:
        """Keys that a query may attend to in a window of `length` tokens, or None when the variant does not select."""
        return None

    def top_k_at(self, step: int) -> int | None:
        """Keys that a query keeps at the 0-based step, where a schedule says other than `n_selected`; else None."""
        return None

    def key_changes(self) -> tuple[int, ...]:
        """Steps, rising, before which `top_k_at` changes."""
        return ()

    def at_most_keys(self, length: int) -> AttentionSpec:
        """The same attention, keeping in all steps the most keys that it keeps in any: what memory is planned by."""
        return self

    def selects_everything(self, length: int) -> bool:
        """Whether k >= L: every query then attends to all that dense attention does."""
        k = self.n_selected(length)
        return k is not None and k >= length

    def warmup_steps(self, steps: int) -> int:
        """Steps of the dense warm-up stage at the start of a run of `steps`; 0 when there is no such stage."""
        return 0

    def own_learning_rate(self) -> float | None:
        """Peak learning rate of the variant's own parameters (an indexer's); None for the model's."""
        return None

    def warmup_rates(self) -> tuple[float | None, float | None]:
        """Peak learning rates of the dense warm-up stage, of the variant's own parameters and of all others; None for
        those of the stage after it."""
        return None, None

    def own_loss_weight(self) -> float:
        """Weight of the variant's own loss (an indexer's; the mean over layers) in the training loss."""
        return 1.0

    def warmup_freezes_backbone(self) -> bool:
        """True when the dense warm-up stage trains the variant's own parameters alone."""
        return False

    def anywhere(self) -> AttentionSpec:
        """The same attention on any machine: for looking at a run away from the device that it was trained on."""
        return self


class DenseSpec(AttentionSpec):
    """Dense attention has no settings."""

    kind: Literal["dense"] = "dense"
    """The variant's name."""


class SelectingSpec(AttentionSpec):
    """Settings of an attention in which each query keeps k keys."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("top_k_ratio", "top_k"),)

    top_k_ratio: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Keys kept for each query, as a share of the length L, rounded half up."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keys kept for each query, in place of top_k_ratio; L or more keeps everything."""

    def n_selected(self, length: int) -> int:
        """k by top_k or top_k_ratio."""
        return keys_kept(length, self.top_k, self.top_k_ratio)


class ScheduledSpec(SelectingSpec):
    """Settings of an attention in which each query keeps its k best keys, whose number may change in training."""

    top_k_schedule: list[list[int]] | None = None
    """Pairs [step, k]: k keys are kept before that step, those of the next pair after it, and in the end top_k (or
    top_k_ratio): with top_k: 64, [[200, 256], [400, 128]] keeps 256 keys in the first 200 steps, 128 in the next 200,
    then 64. Steps count the dense warm-up, which attends to everything. An evaluation keeps the keys of the step before
    it. null keeps the same number throughout."""

    @model_validator(mode="after")
    def _is_a_schedule(self) -> Self:
        pairs = self.top_k_schedule
        if pairs is None:
            return self
        whole = bool(pairs) and all(len(pair) == 2 and min(pair) >= 1 for pair in pairs)
        if not whole or any(one[0] >= other[0] for one, other in itertools.pairwise(pairs)):
            raise ValueError(
                f"top_k_schedule = {pairs}; accepted: pairs [step, k] of whole numbers from 1, steps rising, such as "
                "[[200, 256], [400, 128]]"
            )
        return self

    def top_k_at(self, step: int) -> int | None:
        """k of the first pair whose step is yet to come."""
        return next((k for end, k in self.top_k_schedule or [] if step < end), None)

    def key_changes(self) -> tuple[int, ...]:
        """The steps of top_k_schedule."""
        return tuple(step for step, _ in self.top_k_schedule or [])

    def keeping(self, k: int) -> Self:
        """The same attention with k keys in all steps."""
        return self.model_copy(update={"top_k": k, "top_k_ratio": None, "top_k_schedule": None})

    def at_most_keys(self, length: int) -> Self:
        """Of all steps' k the largest."""
        most = max([self.n_selected(length), *(k for _, k in self.top_k_schedule or [])])
        return self if self.top_k_schedule is None else self.keeping(most)


class AblationSpec(SelectingSpec):
    """Settings of a selection by a rule: as many keys as DSA keeps, after a dense warm-up as long as DSA's."""

    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the steps in the dense warm-up stage; DSA's by default, so that only the selection differs."""

    selection_backend: Literal["auto", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `masked` masks a dense product; `triton` (a CUDA GPU) gives
    index lists to the sparse kernels, without any L x L tensor. `auto` takes `triton` on a GPU from 1024 tokens on
    where at least 8 query heads share a KV head (model.n_kv_heads), else from 8192 tokens on; `masked` elsewhere."""

    def anywhere(self) -> Self:
        """`triton` needs a GPU; `auto` does not."""
        return self.model_copy(update={"selection_backend": "auto"}) if self.selection_backend == "triton" else self

    def warmup_steps(self, steps: int) -> int:
        """warmup_share of the steps."""
        return warmup_steps(self.warmup_share, steps)


class SlidingWindowSpec(ScheduledSpec, AblationSpec):
    """A sliding window has no settings of its own: it is k wide."""

    kind: Literal["sliding_window"] = "sliding_window"
    """The variant's name."""


class SinkWindowSpec(AblationSpec):
    """Settings of the first tokens (sinks) and the window."""

    kind: Literal["sink_window"] = "sink_window"
    """The variant's name."""

    n_sinks: Annotated[int, Field(ge=0)] = 4
    """First tokens that are always kept, of the k; at most k - 1 of them are."""


class StridedSpec(AblationSpec):
    """Strided attention has no settings of its own: its stride follows from k."""

    kind: Literal["strided"] = "strided"
    """The variant's name."""


class RandomSpec(ScheduledSpec, AblationSpec):
    """A random selection has no settings of its own."""

    kind: Literal["random"] = "random"
    """The variant's name."""


class OracleSpec(ScheduledSpec, AblationSpec):
    """The oracle has no settings of its own."""

    kind: Literal["oracle"] = "oracle"
    """The variant's name."""


class BlockSpec(AblationSpec):
    """Settings of the block selection."""

    kind: Literal["block"] = "block"
    """The variant's name."""

    block_size: Annotated[int, Field(ge=1)] = 16
    """Tokens of a block; k where that is less."""


class DSASpec(ScheduledSpec):
    """Settings of DeepSeek Sparse Attention."""

    kind: Literal["dsa"] = "dsa"
    """The variant's name."""

    backend: Literal["auto", "reference", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `reference` gathers, slowly and plainly; `masked` masks a
    dense product; `triton` (a CUDA GPU) streams scores and gathers the selection, without any L x L tensor. `auto`
    takes `triton` on a GPU where it was measured to be faster: where at least 8 query heads share a KV head
    (model.n_kv_heads) from 1024 tokens on and k <= L/16 and from 2048 on and k <= L/4, else from 8192 on and k <= L/8;
    `masked` elsewhere."""

    indexer: IndexerSpec = IndexerSpec()
    """The lightning indexer."""

    def anywhere(self) -> DSASpec:
        """`triton` needs a GPU; `auto` does not."""
        return self.model_copy(update={"backend": "auto"}) if self.backend == "triton" else self

    def warmup_steps(self, steps: int) -> int:
        """indexer.warmup_steps, or indexer.warmup_share of the steps; never the last step."""
        if self.indexer.warmup_steps is not None:
            return min(steps - 1, self.indexer.warmup_steps)
        return warmup_steps(self.indexer.warmup_share or 0.0, steps)

    def own_learning_rate(self) -> float:
        """indexer.learning_rate."""
        return self.indexer.learning_rate

    def warmup_rates(self) -> tuple[float | None, float | None]:
        """indexer.warmup_learning_rate and indexer.warmup_backbone_learning_rate."""
        return self.indexer.warmup_learning_rate, self.indexer.warmup_backbone_learning_rate

    def own_loss_weight(self) -> float:
        """indexer.loss_weight."""
        return self.indexer.loss_weight

    def warmup_freezes_backbone(self) -> bool:
        """indexer.freeze_backbone."""
        return self.indexer.freeze_backbone


BUILT_IN: dict[str, type[AttentionSpec]] = {
    spec.model_fields["kind"].default: spec
    for spec in (
        DenseSpec,
        DSASpec,
        SlidingWindowSpec,
        SinkWindowSpec,
        StridedSpec,
        RandomSpec,
        OracleSpec,
        BlockSpec,
    )
}
"""The settings class of every built-in variant by its name, in the order in which they are listed."""
