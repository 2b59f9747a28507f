"""The payload of a run for a node: all it needs to train without any file of the driver's machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsabench.attention.plugins import plugin_digest
from dsabench.errors import DataError, SpecError
from dsabench.spec.run import RunSpec
from dsabench.user_folders import expanded

ORIGIN = "origin/"
"""What stands before the name of a file of the model that a run starts from."""

TOKENIZER = "data.tokenizer"
"""The name of the file that data.tokenizer names."""

PIECE_BYTES = 8 * 2**20
"""Size of a piece of a checkpoint: about as much of it is in memory at a time, at a node or the driver."""


@dataclass(frozen=True)
class Order:
    """A Job as plain values, and what else its node needs."""

    run_id: str
    spec: dict[str, Any]
    """Its paths are absolute ones of the driver's machine."""

    fingerprint: dict[str, str]
    """Digests that corpus, tokenizer and plugin must have; with others it would be another run."""

    halve: bool
    concurrency: int
    threads: int | None
    """PyTorch's threads, for a run on a CPU."""

    metrics: bytes
    """The run's records so far, up to its checkpoint's step."""

    origin: dict[str, Any] | None = None
    """What is recorded of the model that it starts from, whose weights are sent with it."""


def contents(specs: Sequence[RunSpec]) -> dict[str, bytes]:
    """The content of each plugin file of the specs, by path. Raises SpecError for one that was changed since."""
    contents: dict[str, bytes] = {}
    for path in dict.fromkeys(path for spec in specs for path in spec.plugins):
        try:
            contents[path] = Path(path).read_bytes()
        except OSError as error:
            raise SpecError(f"plugins: {path} cannot be read: {error.strerror}") from error
    there = {hashlib.sha256(content).hexdigest() for content in contents.values()}
    kinds = {kind for spec in specs for kind in spec.attention.kinds}
    if changed := {kind for kind in kinds if (digest := plugin_digest(kind)) and digest not in there}:
        raise SpecError(f"plugins: the file of attention {min(changed)} was changed just now; start the sweep again")
    return contents


def absolute(spec: dict[str, Any], cpu: bool) -> dict[str, Any]:
    """The spec's values for a node: no path in it depends on the current folder. cpu: without a GPU of Ray's."""
    data, engine = spec["data"], spec["engine"]
    kind, colon, path = data["source"].partition(":")
    if colon and kind == "path":
        data = {**data, "source": f"path:{expanded(path, DataError).absolute()}"}
    if data["tokenizer"] not in ("bpe", "bytes"):
        data = {**data, "tokenizer": str(expanded(data["tokenizer"], DataError).absolute())}
    if cpu and engine["device"] == "auto":
        engine = {**engine, "device": "cpu"}
    return {**spec, "data": data, "engine": engine}


def pieces(path: Path) -> Iterator[bytes]:
    """The content of a file, in pieces of at most PIECE_BYTES."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
