"""The metrics that can be compared, their units and directions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsabench.analysis.variants import scored_units


@dataclass(frozen=True)
class Metric:
    """What can be compared."""

    unit: str
    lower_is_better: bool = True
    margin_in_nats: bool = False
    """Whether the margin, in nats per token, applies to it."""
    needs_one_machine: bool = False
    """Whether values measured on different machines cannot be compared."""

    def per(self, scored: str) -> Metric:
        """The same with its unit counted over `scored` (`answer`, or `token or answer`) in place of tokens."""
        counted = self.unit.replace("per token", f"per {scored}")
        return replace(self, unit=counted.replace("of tokens", f"of {scored_units(scored)}"))


GAP = "generalisation_gap"
"""Validation minus training loss, both of fixed windows: what a model has memorised rather than learnt."""

METRICS = {
    "val_loss": Metric("nats per token", margin_in_nats=True),
    "val_bits_per_byte": Metric("bits per byte", margin_in_nats=True),
    GAP: Metric("nats per token", margin_in_nats=True),
    "val_accuracy": Metric("share of tokens", lower_is_better=False),
    "task_accuracy": Metric("share of answers", lower_is_better=False),
    "step_ms": Metric("ms", needs_one_machine=True),
    "tokens_per_second": Metric("tokens/s", lower_is_better=False, needs_one_machine=True),
    "peak_memory_mb": Metric("MB", needs_one_machine=True),
}
"""The metrics that `compare` accepts, by their columns."""
