"""Settings of the oracle."""

from __future__ import annotations

from typing import Literal

from dsabench.spec.attention.ablation_settings import AblationSpec
from dsabench.spec.attention.selecting_settings import ScheduledSpec


class OracleSpec(ScheduledSpec, AblationSpec):
    """The oracle has no settings of its own."""

    kind: Literal["oracle"] = "oracle"
    """The variant's name."""
