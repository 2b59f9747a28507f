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
    """The layer, and how it is timed."""

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
    """dtype of all inputs; sums are fp32."""

    repeats: Positive = 20
    """Most repetitions of a measurement; fewer where they take long."""

    stages: Annotated[list[StageName], Field(min_length=1)] = ["sparse"]
    """DSA's stages of training: `dense` is the warm-up, dense attention with the KL loss over all causal keys."""

    only: list[str] = []
    """Names of implementations, or their beginnings up to a hyphen; an empty list is all."""

    methods: list[str] = []
    """Names of implementations that are timed beside the usual ones, or beside those of `only`."""

    deterministic: bool = False
    """True asks every implementation for gradients whose bits repeat."""

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
    """The measurements of an implementation, or of a part of one, at one length; None where there is none."""

    ms: float | None = None
    """Median time."""

    ms_p20: float | None = None
    ms_p80: float | None = None
    repeats: int = 0
    flops: float
    """FLOPs that the method needs: a multiply-add is 2; masked-out pairs do not count, scores computed again backward
    do."""

    bytes: float
    """The fewest bytes to and from memory: each input of a pass read once, each output written once."""

    gathered_bytes: float = 0.0
    """Bytes of keys and values, once for every query that selected them, and of atomic additions to them."""

    tflops_per_second: float | None = None
    roofline_share: float | None = None
    """max(flops / the measured matrix-product rate, bytes / the measured copy rate) over the time."""

    roofline_bound: Literal["flops", "bytes"]


class Cell(Measured):
    """One implementation at one length and stage."""

    implementation: str
    stage: StageName
    length: int

    layer: int | None = None
    """The layer of the run whose inputs, and so selections, were timed; None: random inputs."""

    status: Status
    reason: str | None = None
    """The reason why there is no time; the first line of an error."""

    forward_ms: float | None = None
    """Median of the forward pass."""

    backward_ms: float | None = None
    peak_memory_mb: float | None = None
    """MB (10^6 bytes) of inputs, outputs, gradients and all between; None on a CPU."""

    speed_up: float | None = None
    """The fastest dense implementation's ms at this length over this one's."""


class Part(Measured):
    """One part of DSA by Triton kernels, timed by itself."""

    part: str
    stage: StageName
    length: int

    layer: int | None = None
    """The layer of the run whose inputs, and so selections, were timed; None: random inputs."""

    status: Status
    reason: str | None = None


class UnionSize(_Record):
    """Different keys that neighbouring queries select."""

    layer: int | None
    """The layer of the run that selects; None: random inputs."""

    length: int
    queries: Positive
    """Neighbours of a group."""

    keys_over_k: float
    """Different keys of a group over the keys of one of its queries, means over groups: 1 when all select alike,
    `queries` when nothing is shared."""


class Check(_Record):
    """An implementation's results against the reference in fp64, on a small input."""

    implementation: str
    stage: StageName
    ok: bool
    error: float | None = None
    """The largest |found - expected| / |expected| of output, loss and gradients; None where one is no number."""

    worst: str | None = None
    """The result with that error; None where nothing was compared, because it computes something else."""

    tolerance: float
    status: Status
    reason: str | None = None


class Crossover(_Record):
    """The length from which on one implementation is faster than another."""

    implementation: str
    against: str
    length: float | None
    """Interpolated, log time over log length; None when it never is faster, or when that cannot be said."""

    relation: Literal["interpolated", "at or below", "never", "not measured"]
    words: str


class Roofline(_Record):
    """The measured rates of the device."""

    flops_per_second: float
    """Rate of a large square matrix product in this dtype, as `profile` measures it."""

    bytes_per_second: float
    """Rate of a large copy, bytes read plus bytes written."""


class Document(_Record):
    """The whole result of a bench."""

    schema_version: Literal[1] = 1
    environment: dict[str, Any]
    settings: Settings
    inputs: str
    """The origin of queries, keys and the indexer's projections, in words. Where there is a run, DSA is timed with
    random inputs and with those of its layers, all else with random ones."""

    run_id: str | None = None
    roofline: Roofline
    checks: list[Check]
    cells: list[Cell]
    parts: list[Part]
    unions: list[UnionSize] = []
    """By layer, of a bench of a run."""

    crossovers: list[Crossover]
    notes: list[str]


def load(path: Path) -> Document:
    """A bench.json. Raises SpecError when it is none."""
    try:
        return Document.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise SpecError(f"{path} is no bench.json: {str(error).splitlines()[0]}") from None
