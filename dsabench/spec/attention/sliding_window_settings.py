"""Settings of the sliding window."""

from __future__ import annotations

from typing import Literal

from dsabench.spec.attention.ablation_settings import AblationSpec
from dsabench.spec.attention.selecting_settings import ScheduledSpec


class SlidingWindowSpec(ScheduledSpec, AblationSpec):
    """A sliding window has no settings of its own: it is k wide."""

    kind: Literal["sliding_window"] = "sliding_window"
    """The variant's name."""
