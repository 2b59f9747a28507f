"""The training of an attention with a lightning indexer: its stages and rates, which the indexer's settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsabench.spec.attention.attention_spec import AttentionSpec, warmup_steps

if TYPE_CHECKING:
    from dsabench.spec.attention.indexer_settings import IndexerSpec


class IndexedSpec(AttentionSpec):
    """Base of the settings of an attention with a lightning indexer. A subclass has the field `indexer`: where it
    stands among the others is the subclass's to say."""

    if TYPE_CHECKING:
        indexer: IndexerSpec

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
