"""IndexerSpec: the settings of the lightning indexer. Loads no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dsabench.spec.strict_model import Formerly, Spec


class IndexerSpec(Spec):
    """The lightning indexer and how it is trained."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("warmup_share", "warmup_steps"),)

    n_heads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Indexer heads J."""

    head_dim: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] = 64
    """Width of an indexer head; the first half is rotated by position (in half-split pairs, as in DeepSeek's code since
    November 2025), so a multiple of 4."""

    norm_eps: Annotated[float, Field(gt=0, le=1), Formerly(1e-5)] = 1e-6
    """Epsilon of the LayerNorm on the indexer's key. 1e-6 is that of DeepSeek's released code; runs of dsabench 0.1 had
    PyTorch's 1e-5, which changes scores by about 2e-3 of their size, and keep their ids and their numbers with it."""

    share_layers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Layers that share one indexer, of `dsa`: the first of each n scores and selects, the n - 1 after it attend to the
    same keys, and its target is the mean of their attentions (IndexCache, arXiv 2603.12201; 4 in GLM-5.2). In a hybrid
    stack, n layers of the same settings."""

    loss: Literal["kl", "none"] = "kl"
    """`kl` trains the indexer to predict the attention's own probabilities; `none` leaves it as it was drawn."""

    loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the KL loss, which is the mean over queries and over layers; a trainer that adds the layers' losses has
    the same with this weight divided by n_layers. Under Adam it hardly matters; learning_rate does."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """The indexer's own peak learning rate, on the same schedule as the model's."""

    warmup_learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """The indexer's peak learning rate in the warm-up stage; null is learning_rate. DeepSeek-V3.2 had 1e-3 in the
    warm-up and 7.3e-6 after it."""

    warmup_backbone_learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """The peak learning rate of everything else in the warm-up stage; null is train.learning_rate."""

    warmup_share: Annotated[float, Field(ge=0, lt=1)] | None = 0.2
    """Share of the steps in the dense warm-up stage."""

    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of the dense warm-up stage, in place of warmup_share; 0 is no warm-up. At least the last step is sparse."""

    freeze_backbone: bool = False
    """True trains only the indexer during warm-up (for a backbone that is already trained)."""

    @model_validator(mode="after")
    def _frozen_backbone_needs_a_learner(self) -> Self:
        if self.freeze_backbone and self.loss == "none":
            raise ValueError("freeze_backbone = true with loss = none would train nothing in the warm-up stage")
        if self.freeze_backbone and self.warmup_backbone_learning_rate is not None:
            raise ValueError("freeze_backbone = true trains nothing at warmup_backbone_learning_rate; keep one of them")
        return self
