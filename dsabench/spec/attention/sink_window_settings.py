"""Settings of sinks and a window."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsabench.spec.attention.ablation_settings import AblationSpec


class SinkWindowSpec(AblationSpec):
    """Settings of the first tokens (sinks) and the window."""

    kind: Literal["sink_window"] = "sink_window"
    """The variant's name."""

    n_sinks: Annotated[int, Field(ge=0)] = 4
    """First tokens that are always kept, of the k; at most k - 1 of them are."""
