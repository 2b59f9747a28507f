"""Notes beside Triton's cache of what was compiled ahead, so that a sweep that was begun before waits for nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from dsabench.compilation.compile_order import Order

_FOLDER = "dsabench"


class DoneBefore:
    """The note of an order: the folders of Triton's cache with its kernels. It lies in that cache and goes with it."""

    def __init__(self, order: Order) -> None:
        self.cache = _cache()
        shapes = sorted(shape.spec.model_dump_json(exclude={"seed"}) for shape in order.shapes)
        sizes = sorted((shape.vocab_size, shape.micro_batch, shape.recompute) for shape in order.shapes)
        settings = {name: value for name, value in os.environ.items() if name.startswith("TRITON_")}
        what = (shapes, sizes, order.gpu, order.precision, order.deterministic, settings, _code())
        self.note = self.cache / _FOLDER / f"{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.json"

    def holds(self) -> bool:
        """Whether all kernels of the order were compiled by this code, and are still there."""
        with suppress(OSError, ValueError, TypeError):
            folders = json.loads(self.note.read_text(encoding="utf-8"))
            return all((self.cache / folder).is_dir() for folder in folders)
        return False

    def remember(self, folders: Sequence[str]) -> None:
        """Note that they were. Where it cannot be written, they are looked for again next time."""
        with suppress(OSError):
            self.note.parent.mkdir(parents=True, exist_ok=True)
            new = self.note.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(sorted(folders)), encoding="utf-8")
            new.replace(self.note)


def _cache() -> Path:
    from triton import knobs

    return Path(knobs.cache.dir)


def _code() -> list[object]:
    """What kernels are made from: the sources of the package by size and time of change, PyTorch and Triton."""
    root = Path(__file__).parent.parent
    files = sorted(root.rglob("*.py"))
    found = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return [str(root), found, version("torch"), version("triton")]
