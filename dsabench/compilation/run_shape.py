"""A run's shape, as something that launches kernels."""

from __future__ import annotations

from dataclasses import dataclass

from dsabench.compilation.compile_order import Order
from dsabench.spec.run import RunSpec


@dataclass(frozen=True)
class Shape:
    """A run's shape: what decides its kernels."""

    spec: RunSpec
    vocab_size: int
    micro_batch: int
    recompute: bool

    def key(self) -> str:
        """Of runs that differ in their seed alone the same."""
        sizes = (self.vocab_size, self.micro_batch, self.recompute)
        return f"{self.spec.model_dump_json(exclude={'seed'})} {sizes}"

    def launch(self, order: Order) -> None:
        """As its runs do."""
        from dsabench.compilation.dry_run import launch_all  # loads every kernel

        launch_all(self.spec, self.vocab_size, self.micro_batch, self.recompute, order)
