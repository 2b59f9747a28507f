"""Checkpoints: safetensors for every tensor, JSON for the rest; nothing is ever pickled.

model.safetensors      every parameter, fp32, by name
optimizer.safetensors  AdamW's moments and step counts as PARAMETER/STATE; absent once the run is done
state.json             vocab_size and the fields of Progress
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dsabench.engine.optimizer import Optimizer
from dsabench.errors import StoreError
from dsabench.model.transformer import Transformer


@dataclass
class Progress:
    """How far a run has come, and its measurements so far."""

    step: int = 0
    """Steps done."""

    machine: str = ""
    """Execution.describe() of the times below; on another machine they begin anew."""

    seconds: float | None = 0.0
    """Time in training steps so far, without start-up, captures and evaluations; None once the run has been on two
    machines."""

    peak_memory_mb: float | None = None
    """Largest memory of any training segment on this machine."""

    step_ms: dict[str, list[float]] = field(default_factory=lambda: {"dense": [], "sparse": []})
    """Mean step time of each timed segment, in ms, by stage."""

    pending: list[tuple[list[list[float]], float]] = field(default_factory=list)
    """For each segment since the last train record: the metrics of its steps, and the seconds it was charged."""

    others_seconds: float | None = 0.0
    """Seconds that other programs have kept cores of this machine busy since the start, the sum over cores; None where
    the system does not say."""

    watched_seconds: float = 0.0
    """Seconds that were watched for it."""

    owes_evaluation: bool = False
    """Whether the evaluation at this step is still to be made, because the run was stopped before its end."""


_PROGRESS = TypeAdapter(Progress)


def save(folder: Path, model: Transformer, optimizer: Optimizer | None, progress: Progress) -> None:
    """Write a checkpoint into an empty folder; without an optimizer it can be loaded but not trained further."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    _save(tensors, folder / "model.safetensors")
    if optimizer is not None:
        state = {name: value.detach().cpu().contiguous() for name, value in optimizer.state()}
        _save(state, folder / "optimizer.safetensors")
    text = json.dumps({"vocab_size": model.vocab_size, **asdict(progress)})
    (folder / "state.json").write_text(text, encoding="utf-8")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """save_file, with an OSError where the disk is full: safetensors reports that in its text alone."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))) from error


def vocab_size(folder: Path) -> int:
    """Vocabulary of the checkpointed model."""
    size = _state(folder).get("vocab_size")
    if type(size) is not int or not 1 <= size < 2**31:
        raise StoreError(f"{folder / 'state.json'} names no vocab_size")
    return size


def steps_done(folder: Path) -> int:
    """Training steps behind the checkpoint."""
    step = _state(folder).get("step")
    if type(step) is not int or step < 0:
        raise StoreError(f"{folder / 'state.json'} names no step")
    return step


def check_weights(folder: Path, model: Transformer) -> None:
    """Raise StoreError when the checkpoint is damaged or of another model. The model may be an `outline`: a record that
    asks for a huge model is refused before that is built."""
    path = folder / "model.safetensors"
    shapes = tensor_shapes(path)
    for name, parameter in model.named_parameters():
        if shapes.get(name) != tuple(parameter.shape):
            raise StoreError(f"{path} holds no {name} of shape {tuple(parameter.shape)}")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a safetensors file's tensors, whose values are not read. Raises StoreError."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def load_weights(folder: Path, model: Transformer) -> None:
    """Copy the checkpoint's weights into the model. Raises StoreError when they are damaged or of another model."""
    check_weights(folder, model)
    weights = tensors(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def load(folder: Path, model: Transformer, optimizer: Optimizer) -> Progress:
    """Restore model and optimizer, and return how far the run had come."""
    state = _state(folder)
    state.pop("vocab_size", None)
    try:
        progress = _PROGRESS.validate_python(vars(Progress(**state)))  # type: ignore[arg-type]
    except (TypeError, ValidationError) as error:
        raise StoreError(f"{folder / 'state.json'} is not a checkpoint of this dsabench: {error}") from error
    load_weights(folder, model)
    # The last checkpoint has no optimizer. A run killed between it and its record resumes from it, with no steps left.
    if progress.step < model.spec.train.steps:
        moments = tensors(folder / "optimizer.safetensors")
        _check_moments(folder / "optimizer.safetensors", moments, model)
        optimizer.load_state(moments)
    return progress


def _check_moments(path: Path, moments: dict[str, torch.Tensor], model: Transformer) -> None:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for key, value in moments.items():
        name, _, part = key.rpartition("/")
        if name not in shapes or value.shape != (torch.Size() if part == "step" else shapes[name]):
            raise StoreError(
                f"{path} holds {key!r} of shape {tuple(value.shape)}, which this model's optimizer has not"
            )


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a safetensors file. Raises StoreError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _state(folder: Path) -> dict[str, object]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{folder / 'state.json'} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise StoreError(f"{folder / 'state.json'} holds no mapping")
    return state
