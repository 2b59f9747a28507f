"""The margin that a sweep counts as "not worse", fixed before its first run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dsabench.spec.strict_model import Spec


class VerdictSpec(Spec):
    """The margin of the verdict. It belongs to the sweep and not to a run: it changes nothing that is learnt."""

    margin: Annotated[float, Field(gt=0)] = 0.02
    """Nats per token by which a variant's validation loss may lie above the baseline's and still be called not worse.
    Fixed before the first run: a margin chosen after seeing the losses proves nothing."""
