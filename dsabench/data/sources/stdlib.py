"""`stdlib`: the .py files of the running Python, without tests: a corpus of code that every machine has."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

from dsabench.data.sources.readers import read_text
from dsabench.data.sources.source import Source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

_NOT_CODE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def find(data: DataSpec, rest: str, tell: Callable[[str], None]) -> Source:
    """The files in order of their paths. Raises DataError when this Python has none."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_CODE]
        files += [Path(folder) / name for name in names if name.endswith(".py")]
    files.sort(key=lambda path: path.relative_to(root).as_posix())
    if not files:
        raise DataError(
            f"data.source = 'stdlib': this Python has no .py files in {root}; use another source, e.g. sotu"
        )
    labels = tuple(path.relative_to(root).as_posix() for path in files)
    return Source("stdlib", tuple(files), labels, read_text, ("stdlib",))
