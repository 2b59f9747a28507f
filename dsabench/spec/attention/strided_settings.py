"""Settings of strided attention."""

from __future__ import annotations

from typing import Literal

from dsabench.spec.attention.ablation_settings import AblationSpec


class StridedSpec(AblationSpec):
    """Strided attention has no settings of its own: its stride follows from k."""

    kind: Literal["strided"] = "strided"
    """The variant's name."""
