"""The records of a store's JSON files as frozen pydantic models, and reading them with checks."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from dsabench._version import __version__
from dsabench.errors import StoreError
from dsabench.spec.former_values import with_former_values
from dsabench.store.record_values import (
    check_order,
    check_run_ids,
    check_rungs,
    check_spec,
    check_summary,
    check_time,
    check_year,
)
from dsabench.store.seals import Seal, record_digest
from dsabench.store.tuning_records import TuningRecord

SCHEMA_VERSION = 1
"""Version of the store's files; a store or record with a larger one was written by a newer dsabench."""

LAST = 2**62
"""The largest number of a record's order."""

Status = Literal["running", "done", "failed", "interrupted"]
Scalar = bool | int | float | str | None

RESERVED = frozenset(
    (
        *("run_id", "status", "attention", "length", "seed", "sweep", "error"),
        *("created", "updated", "order", "version", "seal"),
    )
)
"""Columns of the store's table that are no summary entry."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_OWN_NAMES = {"sweeps", "index.parquet", "store.json"}


class RunBusyError(StoreError):
    """Another process is writing this run."""


class DamagedError(StoreError):
    """What is stored is not what was written; `record` is what stands there, if it can be read at all."""

    def __init__(self, message: str, record: RunRecord | None = None) -> None:
        super().__init__(message)
        self.record = record


class RunDoneError(StoreError):
    """The run is finished; `record` is its record."""

    def __init__(self, message: str, record: RunRecord) -> None:
        super().__init__(message)
        self.record = record


def check_id(name: str, what: str = "run") -> str:
    """`name`, when it can be the id of a run or sweep: a single folder or file name inside the store.

    Raises:
        StoreError: it cannot.
    """
    if not _ID.fullmatch(name):
        raise StoreError(
            f"{what} id {name!r}: letters, digits, '.', '_' and '-' are accepted, "
            "a letter or digit first, at most 200 of them"
        )
    if name in _OWN_NAMES:
        raise StoreError(f"{what} id {name!r}: the store itself has a file or folder of that name; choose another")
    return name


def is_id(name: str) -> bool:
    """Whether `check_id` accepts `name`."""
    return _ID.fullmatch(name) is not None and name not in _OWN_NAMES


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def microseconds(time: datetime) -> int:
    """Microseconds from 1970 to `time`; below 0 before."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _utc(value: datetime) -> datetime:
    try:
        return check_year(value.astimezone(UTC))
    except OverflowError:
        raise ValueError("out of the range of dates") from None


Time = Annotated[AwareDatetime, BeforeValidator(check_time), AfterValidator(_utc)]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


class Record(BaseModel):
    """Base of the store's records: immutable, and unknown fields survive being read and written again."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of this file's format."""

    created: Time = Field(default_factory=now)
    """When it was first written (UTC)."""

    updated: Time = Field(default_factory=now)
    """When it was last written (UTC)."""

    order: Annotated[Annotated[int, Field(ge=0, le=LAST)] | None, BeforeValidator(check_order)] = None
    """Its place among all that was written to the store: what was written later has the larger number, whatever the
    clock said. None in records of versions that had none."""

    seal: Seal | None = None
    """Digests of the record and of the run's files, by which a reader sees damage; None in records of versions that
    had none."""

    @property
    def place(self) -> int:
        """`order`, or when it was last written in microseconds since 1970, which it is compared with."""
        return microseconds(self.updated) if self.order is None else self.order

    def sealed(self) -> Self:
        """The record with the digest of itself in its seal."""
        files = None if self.seal is None else self.seal.files
        bare = self.model_copy(update={"seal": Seal(digest="", files=files)})
        # Through JSON: the digest is of what a reader gets, keys as text, for example.
        digest = record_digest(json.loads(_dumped(bare)))
        return bare.model_copy(update={"seal": Seal(digest=digest, files=files)})

    def to_json(self) -> bytes:
        """The record as a JSON document, sealed; NaN and Infinity are the tokens that `json.loads` reads."""
        return (_dumped(self.sealed()) + "\n").encode()


def _dumped(record: Record) -> str:
    def encode(value: Any) -> str:
        if isinstance(value, datetime):
            return value.isoformat()
        raise TypeError(f"a record cannot hold {value!r}; JSON values are accepted")

    return json.dumps(record.model_dump(), indent=1, default=encode)


class RunRecord(Record):
    """One training run: `runs/<run_id>/run.json`."""

    run_id: str
    """The run's identity and folder name."""

    status: Status
    """`running`, `done`, `failed` or `interrupted`; a reader shows a crashed run as `interrupted`."""

    spec: dict[str, Any]
    """The RunSpec as nested JSON; not validated as one, so that a record of any variant can be read anywhere. Fields
    that an earlier version did not have are filled in with what it did (spec.former_values)."""

    fingerprint: dict[str, str] = {}
    """Digests of the corpus, the tokenizer and plugin files."""

    environment: dict[str, Any] = {}
    """Where it ran: versions, device, host."""

    summary: dict[str, Scalar] = {}
    """The finished run's metrics by name, those of `metrics.columns` and others."""

    error: str | None = None
    """Why it failed."""

    sweep: str | None = None
    """Id of the sweep that last started it."""

    version: str = __version__
    """The dsabench that wrote it."""

    @field_validator("spec")
    @classmethod
    def _has_an_identity(cls, spec: dict[str, Any]) -> dict[str, Any]:
        attention = spec.get("attention", {})
        if not isinstance(attention, dict) or not isinstance(attention.get("kind"), str | None):
            raise ValueError(f"attention = {attention!r} is not a mapping whose `kind` is a name")
        for name in ("length", "seed"):
            if name in spec and not _whole(spec[name]):
                raise ValueError(f"{name} = {spec[name]!r} is not a whole number")
        check_spec(spec)
        return with_former_values(spec)

    @field_validator("summary")
    @classmethod
    def _fits_the_columns(cls, summary: dict[str, Scalar]) -> dict[str, Scalar]:
        if taken := RESERVED & summary.keys():
            raise ValueError(f"{', '.join(sorted(taken))}: the name is taken by a column that is not a metric")
        check_summary(summary)
        if not isinstance(summary.get("leak"), bool | None):
            raise ValueError(f"leak = {summary['leak']!r} is neither true nor false")
        return summary


class SweepRecord(Record):
    """One sweep: `runs/sweeps/<id>.json`."""

    id: str
    """The sweep's identity and file name."""

    spec: dict[str, Any]
    """Its base and axes as JSON."""

    run_ids: list[str]
    """Its runs in the order of the plan."""

    parents: list[str] = []
    """Runs that were trained only for its runs to start from, and are none of them."""

    rungs: dict[str, list[str]] = {}
    """Runs of each rung of its ladder, by the rung's name, first to last; a run may be on several. {}: no ladder."""

    tuning: TuningRecord | None = None
    """The search that chose each variant's settings; `run_ids` are its trials while it goes on. None: no search."""

    command: list[str] | None = None
    """The command line that started it."""

    environment: dict[str, Any] = {}
    """Where it was started."""

    version: str | None = None
    """The dsabench that wrote it; None in records of versions before 0.3."""

    @property
    def trials(self) -> list[str]:
        """The runs that chose the settings of its runs."""
        studies = [] if self.tuning is None else self.tuning.studies
        return [trial.run_id for study in studies for trial in study.trials]

    @field_validator("run_ids")
    @classmethod
    def _are_ids(cls, run_ids: list[str]) -> list[str]:
        return check_run_ids([check_id(name) for name in run_ids])

    @field_validator("rungs")
    @classmethod
    def _are_of_its_runs(cls, rungs: dict[str, list[str]], info: ValidationInfo) -> dict[str, list[str]]:
        return check_rungs(rungs, info.data.get("run_ids"))
