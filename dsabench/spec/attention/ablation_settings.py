"""Settings that all selections by a rule share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec.attention.attention_spec import warmup_steps
from dsabench.spec.attention.selecting_settings import SelectingSpec


class AblationSpec(SelectingSpec):
    """Settings of a selection by a rule: as many keys as DSA keeps, after a dense warm-up as long as DSA's."""

    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the steps in the dense warm-up stage; DSA's by default, so that only the selection differs."""

    backend_field: ClassVar[str] = "selection_backend"

    selection_backend: Literal["auto", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `masked` masks a dense product; `triton` (a CUDA GPU) gives
    index lists to the sparse kernels, without any L x L tensor. `auto` takes `triton` on a GPU from 1024 tokens on
    where at least 8 query heads share a KV head (model.n_kv_heads), else from 8192 tokens on; `masked` elsewhere."""

    def why_not_latent(self) -> None:
        """It takes either layout."""

    def warmup_steps(self, steps: int) -> int:
        """warmup_share of the steps."""
        return warmup_steps(self.warmup_share, steps)
