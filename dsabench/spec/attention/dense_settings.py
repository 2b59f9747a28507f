"""Settings of dense attention."""

from __future__ import annotations

from typing import Literal

from dsabench.spec.attention.attention_spec import AttentionSpec


class DenseSpec(AttentionSpec):
    """Dense attention has no settings."""

    kind: Literal["dense"] = "dense"
    """The variant's name."""

    def why_not_latent(self) -> None:
        """It takes either layout."""
