"""Settings of the mixture of block attention."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsabench.spec.attention.ablation_settings import AblationSpec


class MoBASpec(AblationSpec):
    """Settings of the mixture of block attention (MoBA)."""

    kind: Literal["moba", "block"] = "moba"
    """The variant's name; `block` is the one that it had until version 0.4, and means the same."""

    block_size: Annotated[int, Field(ge=1)] = 16
    """Tokens of a block; k where that is less. MoBA's paper has 512 tokens to a block and 3 blocks at 8192 tokens."""
