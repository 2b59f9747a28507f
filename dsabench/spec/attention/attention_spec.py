"""AttentionSpec: the base of every attention's settings. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from dsabench.spec.attention.indexer_settings import IndexerSpec
from dsabench.spec.strict_model import Spec


def warmup_steps(share: float, steps: int) -> int:
    """Steps of a dense warm-up stage: `share` of all, rounded half up, but never the last step."""
    return min(steps - 1, math.floor(share * steps + 0.5))


class AttentionSpec(Spec):
    """Base of every attention variant's spec; a variant adds its own fields and registers the class under its name."""

    kind: str
    """The variant's registered name: `dense`, `dsa`, or the name that a plugin registers."""

    backend_field: ClassVar[str | None] = None
    """The field, if any, that says which backend computes it (AttentionWithBackends)."""

    @model_validator(mode="after")
    def _an_indexer_is_shared_where_it_can_be(self) -> Self:
        indexer = getattr(self, "indexer", None)
        if isinstance(indexer, IndexerSpec) and indexer.share_layers > 1 and self.kind != "dsa":
            raise ValueError(
                f"indexer.share_layers = {indexer.share_layers} is not for {self.kind}, whose layers have an indexer "
                "each; accepted: 1"
            )
        return self

    def fewest_layers(self) -> int:
        """Layers of the smallest stack in which its layers do all that they do: more than one where they share."""
        return 1

    def at(self, layer: int) -> AttentionSpec:
        """The settings of the layer, from 0: of all layers the same but in a hybrid stack."""
        return self

    def distinct(self) -> tuple[AttentionSpec, ...]:
        """The different settings of its layers: itself but in a hybrid stack."""
        return (self,)

    def each(self, change: Callable[[AttentionSpec], AttentionSpec]) -> AttentionSpec:
        """The same attention with the settings of each layer changed."""
        return change(self)

    def once_each(self) -> AttentionSpec:
        """The same attention with as few layers as hold all its different ones: for small copies."""
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of its layers' attentions, each once."""
        return tuple(dict.fromkeys(one.kind for one in self.distinct()))

    @classmethod
    def field_owners(cls, values: Mapping[str, Any]) -> list[type[Spec]]:
        """The classes whose fields may stand in `values`, the mapping that is to become these settings."""
        return [cls]

    def check_model(self, n_layers: int, steps: int) -> None:
        """Raises ValueError where a model of so many layers, trained for so many steps, cannot have it."""

    def n_selected(self, length: int) -> int | None:
        """Keys that a query may attend to in a window of `length` tokens, or None when the variant does not select."""
        return None

    def selected_between(self, query: int, length: int) -> tuple[int, int]:
        """Least and most keys of the captured selection of the query at this 0-based place of its document; asked where
        n_selected is a number. min(k, t + 1) both, unless a variant counts otherwise."""
        k = self.n_selected(length)
        count = query + 1 if k is None else min(k, query + 1)
        return count, count

    def keys_read(self, length: int) -> int:
        """k_effective: tokens or entries whose K and V the last query of a window of `length` tokens reads, all
        branches together. A KV head's own selection counts by itself, a key that two branches read counts twice, and a
        key of an indexer does not count."""
        return self.selected_between(length - 1, length)[1]

    def top_k_at(self, step: int) -> int | None:
        """Keys that a query keeps at the 0-based step, where a schedule says other than `n_selected`; else None."""
        return None

    def key_changes(self) -> tuple[int, ...]:
        """Steps, rising, before which `top_k_at` changes."""
        return ()

    def keeping(self, k: int) -> AttentionSpec:
        """The same attention with k keys in all steps, where it has a schedule of them."""
        return self

    def at_most_keys(self, length: int) -> AttentionSpec:
        """The same attention, keeping in all steps the most keys that it keeps in any: what memory is planned by."""
        return self

    def shrunk(self, length: int, to: int) -> AttentionSpec | None:
        """The same attention in a small copy of a model, its window `to` tokens long in place of `length`, with sizes
        at which it can look ahead in all its ways. None: as it is, with top_k at its share of the length."""
        return None

    def selects_everything(self, length: int) -> bool:
        """Whether k >= L: every query then attends to all that dense attention does."""
        k = self.n_selected(length)
        return k is not None and k >= length

    def warmup_steps(self, steps: int) -> int:
        """Steps of the dense warm-up stage at the start of a run of `steps`; 0 when there is no such stage."""
        return 0

    def why_not_latent(self) -> str | None:
        """Why it does not take model.attention_layout = latent; None where it does."""
        return "it takes keys and values of heads of their own"

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

    def anywhere(self) -> Self:
        """The same attention on any machine: for looking at a run away from the device that it was trained on. The
        backend `triton` needs a GPU; `auto` does not."""
        field = self.backend_field
        return self.model_copy(update={field: "auto"}) if field and getattr(self, field) == "triton" else self
