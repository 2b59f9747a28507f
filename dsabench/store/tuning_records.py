"""The search of a tuned sweep as its record holds it: what each variant tried, its losses, cost and best settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    """Base of the parts of a search: immutable, and unknown fields survive being read and written again."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)


class TrialRecord(_Part):
    """One trial."""

    run_id: str
    """The run that it is."""

    settings: dict[str, Any]
    """What it tried: {field path: value}."""

    val_loss: float | None = None
    """Its validation loss; None where it failed."""

    tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that it was trained on."""

    flops: Annotated[float, Field(ge=0)] = 0.0
    """Its training FLOPs."""

    seconds: Annotated[float, Field(ge=0)] = 0.0
    """Its seconds of training."""


class StudyRecord(_Part):
    """The search of one variant at one length."""

    name: str
    """The variant in words: its values of the sweep's axes."""

    length: int
    """Tokens in a window."""

    attention: str
    """The kind of attention."""

    over: list[str]
    """The fields that its trials vary."""

    lacks: list[str] = []
    """The fields of the search that it does not have."""

    trials: list[TrialRecord] = []
    """Its trials that ended, in their order."""

    best: int | None = None
    """The place of the best trial in `trials`; None while the search goes on."""

    run_ids: list[str] = []
    """The runs of the seeds at the best settings; none while the search goes on."""


class TuningRecord(_Part):
    """A search: its budget and its studies."""

    trials: Annotated[int, Field(ge=1)]
    """Trials of each study."""

    steps: int | None
    """Steps of a trial; None: those of the runs."""

    seed: int
    """Training seed of every trial."""

    sampler: str
    """What chose the settings."""

    studies: list[StudyRecord]
    """One a variant and length."""

    @property
    def is_over(self) -> bool:
        """Whether every study has chosen."""
        return all(study.best is not None and study.run_ids for study in self.studies)
