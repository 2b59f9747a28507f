"""The document of a bench as frozen pydantic models: bench.json, `bench --json` and the Python API give this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsabench.errors import SpecError

Positive = Annotated[int, Field(ge=1)]
StageName = Literal["sparse", "dense"]
Status = Literal["timed", "skipped", "out of memory", "failed", "WRONG"]
"""`skipped`: cannot run here. `failed`: raised an error. `WRONG`: its results differ from the reference's."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Settings(_Record):
    """The sizes of the layer, and which of its implementations and stages are timed."""

    lengths: Annotated[list[Positive], Field(min_length=1)]
    """L, tokens of a row, ascending."""

    batch: Positive = 1
    """B, rows."""

    heads: Positive = 16
    """H, query heads."""

    kv_heads: Positive = 1
    """G, key/value heads: a divisor of H."""

    head_dim: Positive = 64
    """D, width of a head."""

    top_k: Positive = 2048
    """k, keys kept for each query; the sliding window's width too."""

    indexer_heads: Positive = 4
    """J, heads of the lightning indexer."""

    indexer_dim: Positive = 64
    """I, width of an indexer head."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of all inputs; sums are fp32."""

    repeats: Positive = 20
    """Most repetitions of a measurement; fewer where they take long."""

    stages: Annotated[list[StageName], Field(min_length=1)] = ["sparse"]
    """DSA's stages of training: `dense` is the warm-up, dense attention with the KL loss over all causal keys."""

    only: list[str] = []
    """Names of implementations, or their beginnings up to a hyphen; none: all."""

    deterministic: bool = False
    """Gradients whose bits repeat, by all implementations."""

    @model_validator(mode="after")
    def _heads_share_keys_evenly(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}; a divisor is")
        return self


def settings(**values: Any) -> Settings:
    """Settings from keyword arguments. Raises SpecError, naming the flag, its value and what would be accepted."""
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-") + " " if first["loc"] else ""
        given = f"{first['input']}: " if first["loc"] else ""
        raise SpecError(f"{flag}{given}{first['msg'].removeprefix('Value error, ')}") from None


class Measured(_Record):
    """The figures of one implementation, or of one part, at one length; None where a figure was not measured."""

    ms: float | None = None
    """Median."""

    ms_p20: float | None = None
    ms_p80: float | None = None
    repeats: int = 0
    flops: float
    """That the method needs: a multiply-add is 2; masked-out pairs do not count, scores computed again backward do."""

    bytes: float
    """The fewest to and from memory: each input of a pass read once, each output written once."""

    gathered_bytes: float = 0.0
    """Of keys and values, once for every query that selected them, and of atomic additions to them."""

    tflops_per_second: float | None = None
    roofline_share: float | None = None
    """max(flops / the measured matrix-product rate, bytes / the measured copy rate) over the time."""

    roofline_bound: Literal["flops", "bytes"]


class Cell(Measured):
    """One implementation at one length and stage."""

    implementation: str
    stage: StageName
    length: int
    status: Status
    reason: str | None = None
    """Why there is no time; the first line of an error."""

    forward_ms: float | None = None
    """Median, of ms."""

    backward_ms: float | None = None
    peak_memory_mb: float | None = None
    """In MB (10^6): inputs, outputs, gradients and all between; None on a CPU."""

    speed_up: float | None = None
    """The fastest dense implementation's ms at this length over this one's."""


class Part(Measured):
    """One part of DSA by Triton kernels, timed by itself."""

    part: str
    stage: StageName
    length: int
    status: Status
    reason: str | None = None


class Check(_Record):
    """An implementation's results against the reference in fp64, on a small input."""

    implementation: str
    stage: StageName
    ok: bool
    error: float | None = None
    """The largest |found - expected| / |expected| of output, loss and gradients; None where one is no number."""

    worst: str | None = None
    """Which result that is."""

    tolerance: float
    status: Status
    reason: str | None = None


class Crossover(_Record):
    """The length from which on one implementation is faster than another."""

    implementation: str
    against: str
    length: float | None
    """By interpolation of log time over log length; None when it never is, or cannot be said."""

    relation: Literal["interpolated", "at or below", "never", "not measured"]
    words: str


class Roofline(_Record):
    """The measured rates of the device."""

    flops_per_second: float
    """Of a large square matrix product in this dtype, as for `profile`."""

    bytes_per_second: float
    """Read plus written, of a large copy."""


class Document(_Record):
    """The whole result of a bench."""

    schema_version: Literal[1] = 1
    environment: dict[str, Any]
    settings: Settings
    inputs: str
    """Where queries, keys and the indexer's projections come from, in words."""

    run_id: str | None = None
    roofline: Roofline
    checks: list[Check]
    cells: list[Cell]
    parts: list[Part]
    crossovers: list[Crossover]
    notes: list[str]


def load(path: Path) -> Document:
    """Read a bench.json. Raises SpecError for another file."""
    try:
        return Document.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise SpecError(f"{path} is no bench.json: {str(error).splitlines()[0]}") from None
