"""A folder of the cache that holds one tokenized corpus.

train.bin val.bin   token ids, little-endian uint16 (uint32 when the vocabulary has more than 65536 ids)
arrays.npz          offsets of the documents of both; which training documents there are; counts of training ids; of a
                    token file above VERIFY_BYTES the CRC-32 of each block
meta.json           key, digest of the tokenizer, dtype, sizes and digests of the files, notes, and a digest of all
                    this, `seal`; written last

Checked at each opening: meta.json by its seal, arrays.npz and token files up to VERIFY_BYTES by their digests. A larger
token file: its size at the opening, and each block at its first use (checked_tokens.py says what that can miss).

Versions up to 0.2 wrote neither seal nor CRCs, and look at neither: they read these folders. Theirs are made anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsabench.data import checked_file
from dsabench.data.cache import digest
from dsabench.data.checked_file import DAMAGED, UNCHECKED, UnusableError
from dsabench.data.checked_tokens import CheckedTokens, crc_of_blocks

VERIFY_BYTES = 2**26
"""Token files up to this size are compared with their digest at each opening (milliseconds); larger ones by blocks."""

_SIDES = ("train", "val")


@dataclass(frozen=True)
class Entry:
    """A stored corpus, its tokens mapped."""

    tokens: dict[str, NDArray[Any] | CheckedTokens]
    offsets: dict[str, NDArray[np.int64]]
    documents: dict[str, NDArray[np.int64]]
    """Each document's place in the source."""
    counts_V: NDArray[np.int64]
    """How often each id occurs in the training tokens."""
    notes: list[str]

    def is_whole(self) -> bool:
        """Whether every block of the token files is what was written."""
        return all(side.is_whole() for side in self.tokens.values() if isinstance(side, CheckedTokens))


def finish(
    folder: Path,
    key: str,
    tokenizer: str,
    dtype: np.dtype[Any],
    offsets: dict[str, NDArray[np.int64]],
    kept_train: NDArray[np.int64],
    counts_V: NDArray[np.int64],
    notes: list[str],
) -> None:
    """Write all but the tokens. `kept_train`: which of the sorted training documents are used."""
    files = {f"{side}.bin": _described(folder / f"{side}.bin") for side in _SIDES}
    crcs: dict[str, Any] = {
        f"{side}_crc_K": crc_of_blocks(_mapped(folder / f"{side}.bin", dtype))
        for side in _SIDES
        if not files[f"{side}.bin"]["blake2b"]
    }
    with (folder / "arrays.npz").open("wb") as file:
        np.savez(file, train=offsets["train"], val=offsets["val"], kept_train=kept_train, counts_V=counts_V, **crcs)
    files["arrays.npz"] = _described(folder / "arrays.npz", always=True)
    meta = {"key": key, "tokenizer": tokenizer, "dtype": dtype.str, "files": files, "notes": notes}
    (folder / "meta.json").write_text(json.dumps({**meta, "seal": digest(meta)}, indent=1), encoding="ascii")


def train_tokens(folder: Path, key: str) -> int | None:
    """How many training tokens the entry has, by its meta.json; None where there is none that can be believed."""
    try:
        meta = _meta(folder, key)
        n_bytes, id_bytes = int(meta["files"]["train.bin"]["size"]), int(np.dtype(meta["dtype"]).itemsize)
        return n_bytes // id_bytes
    except Exception:  # missing, of an older version or damaged: it is made anew when it is used
        return None


def _meta(folder: Path, key: str) -> dict[str, Any]:
    """The content of meta.json, compared with its seal. Raises UnusableError, and whatever a damaged file leads to."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="ascii"))
    if "seal" not in meta:
        raise UnusableError(UNCHECKED)
    if meta.pop("seal") != digest(meta) or meta["key"] != key:
        raise UnusableError(DAMAGED)
    return meta


def load(
    folder: Path,
    key: str,
    tokenizer: str,
    train: NDArray[np.int64],
    val: NDArray[np.int64],
    mend: Callable[[str], CheckedTokens],
) -> Entry:
    """The entry. Raises UnusableError when it is missing, damaged or from an older version.

    tokenizer: digest of the tokenizer that must have made the tokens. train, val: places of the documents, sorted.
    mend: makes the entry anew and gives the tokens of a side, when a block of it is found damaged later.
    """
    try:
        meta = _meta(folder, key)
        if meta["tokenizer"] != tokenizer:
            raise UnusableError("those of another tokenizer")
        for name, told in meta["files"].items():
            _check(folder / name, told)
        dtype = np.dtype(meta["dtype"])
        with (folder / "arrays.npz").open("rb") as file, np.load(file) as arrays:
            offsets = {"train": arrays["train"], "val": arrays["val"]}
            documents = {"train": train[arrays["kept_train"]], "val": val}
            counts_V = arrays["counts_V"]
            crcs = {side: arrays[f"{side}_crc_K"] for side in _SIDES if f"{side}_crc_K" in arrays}
        tokens: dict[str, NDArray[Any] | CheckedTokens] = {}
        for side in _SIDES:
            path = folder / f"{side}.bin"
            mapped, crc_K = _mapped(path, dtype), crcs.get(side)
            tokens[side] = mapped if crc_K is None else CheckedTokens(mapped, crc_K, partial(mend, side), str(path))
        return Entry(tokens, offsets, documents, counts_V, list(meta["notes"]))
    except UnusableError:
        raise
    except FileNotFoundError:
        raise UnusableError(DAMAGED if folder.exists() else "") from None
    except Exception:  # whatever a damaged file may lead to: it is made anew
        raise UnusableError(DAMAGED) from None


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # An empty file cannot be mapped: a split that holds out no document leaves one.
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _described(path: Path, always: bool = False) -> dict[str, int | str]:
    size = path.stat().st_size
    return {"size": size, "blake2b": checked_file.of_file(path) if always or size <= VERIFY_BYTES else ""}


def _check(path: Path, told: dict[str, int | str]) -> None:
    if path.stat().st_size != told["size"]:
        raise UnusableError(DAMAGED)
    if told["blake2b"] and checked_file.of_file(path) != told["blake2b"]:
        raise UnusableError(DAMAGED)
