"""`PATH` or `hf:NAME[@REVISION]`: the folder of a model that others trained; one of the hub is downloaded.

Downloaded are config.json, tokenizer.json and safetensors, into the cache of huggingface_hub (HF_HOME), once. Nothing
that is downloaded is executed, and no pickle is downloaded at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsabench.errors import CheckpointError, SpecError
from dsabench.spec.foreign_config import ForeignConfig, read_config
from dsabench.user_folders import expanded

HUB = "hf:"

CONNECT_SECONDS = 10.0
"""How long the hub may take to answer."""

_SMALL = ["config.json", "tokenizer.json"]
_WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]


def foreign_config(name: str, tell: Callable[[str], None]) -> ForeignConfig:
    """The config.json of the model `name`; of a model of the hub, the weights are not downloaded. Errors as
    foreign_folder."""
    return read_config(_downloaded(name, _SMALL, tell) if name.startswith(HUB) else _local(name))


def foreign_folder(name: str, tell: Callable[[str], None]) -> Path:
    """The folder of the model `name` with all that is needed. tell: told what is downloaded.

    A model of the hub whose config.json cannot be read is refused before its weights are downloaded. Raises SpecError
    for a name that is none, CheckpointError where there is no such model, no network, or no huggingface_hub.
    """
    if not name.startswith(HUB):
        return _local(name)
    read_config(_downloaded(name, _SMALL, tell))
    return _downloaded(name, [*_SMALL, *_WEIGHTS], tell)


def _local(name: str) -> Path:
    folder = expanded(name, SpecError)
    if folder.is_file():
        raise SpecError(f"{name} is a file; name the folder that holds config.json and the weights")
    if not folder.is_dir():
        raise SpecError(f"{name}: no such folder; accepted: a folder with config.json and safetensors, or hf:NAME")
    return folder


def _downloaded(name: str, patterns: list[str], tell: Callable[[str], None]) -> Path:
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not repository:
        raise SpecError(f"{name!r} names no model; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    hub = _library(name)
    tell(f"{name}: {', '.join(patterns)} (from the cache where they are there already)")
    try:
        folder = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=patterns, etag_timeout=CONNECT_SECONDS
        )
    except Exception as error:  # whatever huggingface_hub and its HTTP library raise: there is no common class
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{name} cannot be downloaded: {type(error).__name__}: {first}; check the name and the network, or "
            "download it elsewhere and give the folder"
        ) from error
    return Path(folder)


def _library(name: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            f"{name} needs the package huggingface_hub ({error}); install it with: pip install 'dsabench[hf]'"
        ) from None
