"""Models that others trained: a folder of `transformers` (config.json and safetensors), read by dsabench's names.

Only safetensors is read, single or sharded: it holds numbers and nothing else. A pickle (.bin, .pt) executes code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsabench.errors import CheckpointError
from dsabench.model.parameter_names import as_ours, their_names, their_shape
from dsabench.model.transformer import Transformer, outline
from dsabench.spec.foreign_config import CONFIG, ForeignConfig, read_config
from dsabench.spec.foreign_folder import INDEX, WEIGHTS
from dsabench.spec.run import RunSpec

DTYPES = ("F32", "BF16", "F16")

_COMPUTED = ".rotary_emb.inv_freq"
"""End of the name of a tensor that old files of Llama hold, and that follows from config.json."""


@dataclass(frozen=True)
class ForeignModel:
    """A model that others trained, checked against its config.json; its weights are read when they are asked for."""

    config: ForeignConfig
    shapes: Mapping[str, tuple[int, ...]]
    """Parameters by dsabench's names: all of a dense model with config.model."""

    files: Mapping[str, Path]
    """The file of each tensor, by the name that it has there."""

    sources: tuple[Path, ...]
    """All files that were looked at: with a copy of them, the model can be read elsewhere."""

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter, each read when it is its turn. The router of the one expert, which
        decides nothing, is zeros."""
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for name, shape in self.shapes.items():
                theirs = their_names(name, 1)
                if not theirs:
                    yield name, torch.zeros(shape)
                    continue
                tensors = []
                for their in theirs:
                    path = self.files[their]
                    if path not in opened:
                        opened[path] = stack.enter_context(_open(path))
                    tensors.append(opened[path].get_tensor(their))
                yield name, as_ours(name, tensors)

    def copy_into(self, model: Transformer) -> tuple[str, ...]:
        """Copy the weights into a model of the same settings and any attention. Returns the names of the parameters
        that this one has not, which stay as they are: the attention's own (an indexer's). Raises CheckpointError that
        names the parameter and both shapes where the model is another one."""
        own = set(model.attention_own_parameters())
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            if name not in own and (there := self.shapes.get(name)) != tuple(parameter.shape):
                has = f"no {name}" if there is None else f"{name} of shape {there}"
                raise CheckpointError(
                    f"{self.config.folder} has {has}; the model to be trained needs shape {tuple(parameter.shape)}"
                )
        if left := [name for name in self.shapes if name not in parameters]:
            raise CheckpointError(f"{self.config.folder} has {left[0]}, which the model to be trained has not")
        with torch.no_grad():
            for name, tensor in self.parameters():
                parameters[name].copy_(tensor)
        return tuple(name for name in parameters if name in own)

    def digest(self) -> str:
        """sha256 of the parameters' names, shapes and fp32 values: the same however they are stored or sharded."""
        content = hashlib.sha256()
        for name, tensor in self.parameters():  # in the order of the model's own parameters
            content.update(f"{name}{tuple(tensor.shape)}".encode())
            content.update(tensor.contiguous().numpy().data)
        return content.hexdigest()


def read_checkpoint(folder: Path) -> ForeignModel:
    """The model in a folder with a config.json. Nothing is built and no weights are read, only headers: shapes and
    dtypes are compared with what config.json promises.

    Raises CheckpointError: an architecture or a field that is not supported, pickled weights, a missing, unexpected,
    misshapen or quantised tensor, a file that cannot be read.
    """
    config = read_config(folder)
    spec = RunSpec.model_validate({"attention": {"kind": "dense"}, "model": dict(config.fields)})
    model = outline(spec, config.model.rows(0))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    files = _files(folder)
    found = _headers(files)
    expected = {theirs: their_shape(name, shape) for name, shape in shapes.items() for theirs in their_names(name, 1)}
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{folder} holds no tensor {name}, which its config.json promises (shape {shape})")
        if found[name][0] != shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has shape {found[name][0]}; by its config.json it has shape {shape}"
            )
        if found[name][1] not in DTYPES:
            raise CheckpointError(
                f"{folder}: the tensor {name} is of type {found[name][1]}; accepted: {', '.join(DTYPES)}"
            )
    others = [name for name in found if name not in expected and not name.endswith(_COMPUTED)]
    if config.model.tied_head and "lm_head.weight" in others:
        others.remove("lm_head.weight")
        _refuse_another_head(folder, files)
    if others:
        raise CheckpointError(
            f"{folder} holds a tensor {sorted(others)[0]}, which a {config.architecture} with its config.json has not"
        )
    known = (folder / name for name in (CONFIG, INDEX))
    sources = (*(path for path in known if path.is_file()), *sorted(set(files.values())))
    return ForeignModel(config, shapes, {name: files[name] for name in expected}, sources)


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointError(f"{folder} holds {WEIGHTS} and {INDEX}: two sets of weights; remove one of them")
    if single.is_file():
        with _open(single) as file:
            return dict.fromkeys(file.keys(), single)
    if index.is_file():
        return _sharded(folder, index)
    if pickled := sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS}, only {pickled[0]}: a pickle, which executes code when it is read, and is "
            "never read here; save the model as safetensors (`transformers` does: model.save_pretrained(FOLDER))"
        )
    raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")


def _sharded(folder: Path, index: Path) -> dict[str, Path]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(file) for tensor, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} holds no weight_map: {type(error).__name__}: {error}") from None
    for file in sorted(set(names.values())):
        if file != Path(file).name or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {file!r}; accepted: .safetensors files of the same folder")
        if not (folder / file).is_file():
            raise CheckpointError(f"{index} names {file}, which is not there")
    return {tensor: folder / file for tensor, file in names.items()}


def _headers(files: Mapping[str, Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of every tensor."""
    found = {}
    for path in sorted(set(files.values())):
        with _open(path) as file:
            inside = set(file.keys())
            for name in (name for name, place in files.items() if place == path):
                if name not in inside:
                    raise CheckpointError(f"{path} holds no tensor {name}, though {INDEX} says so")
                part = file.get_slice(name)
                found[name] = tuple(part.get_shape()), str(part.get_dtype())
    return found


def _refuse_another_head(folder: Path, files: Mapping[str, Path]) -> None:
    tensors = []
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        with _open(files[name]) as file:
            tensors.append(file.get_tensor(name))
    if not torch.equal(*tensors):
        raise CheckpointError(
            f"{folder}: tie_word_embeddings = true of config.json and a tensor lm_head.weight with values other than "
            "model.embed_tokens.weight contradict"
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
