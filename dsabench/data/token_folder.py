"""A folder of the cache that holds one tokenized corpus.

train.bin val.bin   token ids, little-endian uint16 (uint32 when the vocabulary has more than 65536 ids)
arrays.npz          offsets of the documents of both; which training documents there are; counts of training ids
meta.json           key, dtype, sizes and digests of the files, notes; written last
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERIFY_BYTES = 2**26
"""Files up to this size are compared with their digest at each opening (milliseconds); larger ones by size alone."""


@dataclass(frozen=True)
class Entry:
    """A stored corpus, its tokens mapped."""

    tokens: dict[str, NDArray[Any]]
    offsets: dict[str, NDArray[np.int64]]
    documents: dict[str, NDArray[np.int64]]
    """Each document's place in the source."""
    counts_V: NDArray[np.int64]
    """How often each id occurs in the training tokens."""
    notes: list[str]


def finish(
    folder: Path,
    key: str,
    dtype: np.dtype[Any],
    offsets: dict[str, NDArray[np.int64]],
    kept_train: NDArray[np.int64],
    counts_V: NDArray[np.int64],
    notes: list[str],
) -> None:
    """Write all but the tokens. `kept_train`: which of the sorted training documents are used."""
    with (folder / "arrays.npz").open("wb") as file:
        np.savez(file, train=offsets["train"], val=offsets["val"], kept_train=kept_train, counts_V=counts_V)
    files = {name: _described(folder / name) for name in ("train.bin", "val.bin", "arrays.npz")}
    meta = {"key": key, "dtype": dtype.str, "files": files, "notes": notes}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="ascii")


def load(folder: Path, key: str, train: NDArray[np.int64], val: NDArray[np.int64]) -> Entry | None:
    """The entry, or None when it is missing or damaged. `train`, `val`: places of the documents, sorted."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="ascii"))
        if meta["key"] != key or any(_damaged(folder / name, told) for name, told in meta["files"].items()):
            return None
        dtype = np.dtype(meta["dtype"])
        with (folder / "arrays.npz").open("rb") as file, np.load(file) as arrays:
            offsets = {"train": arrays["train"], "val": arrays["val"]}
            documents = {"train": train[arrays["kept_train"]], "val": val}
            counts_V = arrays["counts_V"]
        tokens = {name: _mapped(folder / f"{name}.bin", dtype) for name in ("train", "val")}
        return Entry(tokens, offsets, documents, counts_V, list(meta["notes"]))
    except Exception:  # missing, or damaged in any way: it is made anew
        return None


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # An empty file cannot be mapped: a split that holds out no document leaves one.
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _described(path: Path) -> dict[str, int | str]:
    size = path.stat().st_size
    return {"size": size, "blake2b": _content(path) if size <= VERIFY_BYTES else ""}


def _damaged(path: Path, told: dict[str, int | str]) -> bool:
    if path.stat().st_size != told["size"]:
        return True
    return bool(told["blake2b"]) and _content(path) != told["blake2b"]


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
