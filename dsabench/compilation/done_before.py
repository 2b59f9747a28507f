"""Notes beside Triton's cache of what was compiled ahead, so that a sweep that was begun before waits for nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsabench.compilation.compile_order import Order

_FOLDER = "dsabench"


class DoneBefore:
    """The note of an order: the folders of Triton's cache with its kernels. It lies in that cache and goes with it."""

    def __init__(self, order: Order) -> None:
        self.cache = cache()
        settings = {name: value for name, value in os.environ.items() if name.startswith("TRITON_")}
        what = (sorted(one.key() for one in order.wanted), order.gpu, order.precision, order.deterministic, settings)
        self.note = notes_of_this_code() / f"{_digest(what)}.json"

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


def cache() -> Path:
    """Triton's cache, as Triton itself finds it; without loading it."""
    home = os.environ.get("TRITON_HOME") or str(Path("~").expanduser())
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache"))


def notes_of_this_code() -> Path:
    """The folder of notes of what was compiled by this code: the package's sources, PyTorch and Triton."""
    root = Path(__file__).parent.parent
    found = [(str(file.relative_to(root)), file.stat()) for file in sorted(root.rglob("*.py"))]
    sources = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
    return cache() / _FOLDER / _digest((str(root), sources, version("torch"), version("triton")))


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]
