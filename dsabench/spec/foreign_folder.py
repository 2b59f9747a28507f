"""`PATH` or `hf:NAME[@REVISION]`: the folder of a model that others trained; one of the hub is downloaded.

Downloaded are config.json, tokenizer.json and safetensors, into the cache of huggingface_hub (HF_HOME), once; the
library shows how far it is. Nothing that is downloaded is executed, and no pickle is downloaded at all.
"""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any

from dsabench.errors import CheckpointError, SpecError
from dsabench.spec.foreign_config import CONFIG, ForeignConfig, read_config
from dsabench.user_folders import expanded

HUB = "hf:"

CONNECT_SECONDS = 10.0
"""How long the hub may take to answer."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights of a folder in one file, and the list of them in several."""

_SMALL = (CONFIG, "tokenizer.json")
_WEIGHTS = (WEIGHTS, INDEX, "model-*-of-*.safetensors")


def is_foreign(name: str | Path) -> bool:
    """Whether `name` is a model of the hub, or a folder with a config.json that is no checkpoint or run of dsabench."""
    if str(name).startswith(HUB):
        return True
    folder = expanded(name, SpecError)
    try:
        own = any((folder / file).exists() for file in ("state.json", "run.json"))
        return not own and (folder / CONFIG).is_file()
    except (OSError, ValueError):  # a name too long, a folder that may not be looked into, a null byte
        return False


def foreign_config(name: str) -> ForeignConfig:
    """The config.json of the model `name`; of a model of the hub, the weights are not downloaded. Errors as
    foreign_folder."""
    return read_config(_downloaded(name, _SMALL) if name.startswith(HUB) else _local(name))


def foreign_folder(name: str) -> Path:
    """The folder of the model `name` with all that is needed.

    A model of the hub whose config.json cannot be read is refused before its weights are downloaded. Raises SpecError
    for a name that is none, CheckpointError where there is no such model, no network, or no huggingface_hub.
    """
    if not name.startswith(HUB):
        return _local(name)
    read_config(_downloaded(name, _SMALL))
    folder = _downloaded(name, (*_SMALL, *_WEIGHTS))
    if not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
        raise CheckpointError(
            f"{name} has no {WEIGHTS} and no {INDEX} in {folder}: either it is published as a pickle, which is never "
            "read, or there was no network to download them"
        )
    return folder


def pinned(name: str, folder: Path) -> str:
    """`hf:NAME@COMMIT` of a model of the hub, so that it is found again when it has another; `name` of a folder."""
    if not name.startswith(HUB) or not re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return name
    return f"{name.partition('@')[0]}@{folder.name}"


def _local(name: str) -> Path:
    folder = expanded(name, SpecError)
    if folder.is_file():
        raise SpecError(f"{name} is a file; name the folder that holds config.json and the weights")
    if not folder.is_dir():
        raise SpecError(f"{name}: no such folder; accepted: a folder with config.json and safetensors, or hf:NAME")
    return folder


@functools.cache
def _downloaded(name: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a model of the hub with the files of these patterns; asked for once a process."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not repository:
        raise SpecError(f"{name!r} names no model; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    hub = _library(name)
    try:
        folder = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(patterns), etag_timeout=CONNECT_SECONDS
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
