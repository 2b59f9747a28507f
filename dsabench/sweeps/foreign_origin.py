"""A model that others trained, as the origin of a run: what is recorded of it, and whether a spec is of this model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsabench.model.foreign import ForeignModel, read_checkpoint
from dsabench.spec.foreign_config import ForeignConfig
from dsabench.spec.foreign_folder import foreign_folder
from dsabench.spec.run import RunSpec


def foreign_model(text: str) -> tuple[ForeignModel, dict[str, Any]]:
    """The model of `start.checkpoint = text`; and what a child's record says of it: as of a stored run, and with its
    class in `transformers` and what it was called. Raises CheckpointError, SpecError."""
    folder = foreign_folder(text)
    files = sorted(path for pattern in ("*.json", "*.safetensors") for path in folder.glob(pattern))
    states = [(path.name, path.stat()) for path in files]
    model, digest = _read(folder, tuple((name, state.st_size, state.st_mtime_ns) for name, state in states))
    about = {"run": None, "weights": digest, "steps": 0, "val_loss": None}
    return model, {**about, "checkpoint": text, "model": model.config.architecture}


@functools.lru_cache(maxsize=8)
def _read(folder: Path, state: tuple[Any, ...]) -> tuple[ForeignModel, str]:
    """The model and the digest of its weights, for which all are read: once a process, unless a file changes."""
    model = read_checkpoint(folder)
    return model, model.digest()


def check_foreign(config: ForeignConfig, spec: RunSpec, name: str, tell: Callable[[str], None]) -> None:
    """Raise SpecError or CheckpointError when the spec is not of this model, or has another tokenizer, because nobody
    filled them in. tell: told of windows longer than those that the model was made for."""
    config.agreed(spec.model.model_dump(mode="json"))
    if spec.data.task is None:
        config.tokenizer_agreed(spec.data.tokenizer)
    if config.longest is not None and spec.length > config.longest:
        tell(f"{name} was made for windows of up to {config.longest:,} tokens, and those here have {spec.length:,}")
