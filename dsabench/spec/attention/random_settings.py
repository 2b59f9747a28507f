"""Settings of the random selection."""

from __future__ import annotations

from typing import Literal

from dsabench.spec.attention.ablation_settings import AblationSpec
from dsabench.spec.attention.selecting_settings import ScheduledSpec


class RandomSpec(ScheduledSpec, AblationSpec):
    """A random selection has no settings of its own."""

    kind: Literal["random"] = "random"
    """The variant's name."""
