"""Settings of the selection of blocks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsabench.spec.attention.ablation_settings import AblationSpec


class BlockSpec(AblationSpec):
    """Settings of the block selection."""

    kind: Literal["block"] = "block"
    """The variant's name."""

    block_size: Annotated[int, Field(ge=1)] = 16
    """Tokens of a block; k where that is less."""
