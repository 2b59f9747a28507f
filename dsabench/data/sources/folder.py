"""The regular files of folders, and what of them is left out: hidden files and folders, linked folders, pipes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dsabench.errors import DataError

_SHOWN = 5


def kind_of_file(path: Path) -> str:
    """What stands at `path` when that is neither a regular file nor a folder, as `PATH is a named pipe`; else empty."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return f"{path} is a link to nothing" if path.is_symlink() else ""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode))
    return f"{path} is {kind}" if kind else ""


class Found:
    """Regular files, each once, and what was seen beside them."""

    def __init__(self) -> None:
        self.files: dict[Path, None] = {}
        self._folders: list[Path] = []
        self._hidden: list[Path] = []
        self._odd: list[str] = []

    def add(self, path: Path) -> None:
        """Take a path that was named or matched: a file, or all of a folder that is no link. A hidden one is taken,
        because it was asked for."""
        if path.is_file():
            self.files[path] = None
        elif not path.is_dir():
            self._odd.append(kind_of_file(path))
        elif path.is_symlink():
            self._folders.append(path)
        else:
            self.walk(path)

    def walk(self, root: Path) -> None:
        """Take all files of a folder and the folders below it, but those that are hidden or linked. Raises DataError
        for a folder that cannot be read."""
        for folder, folders, names in os.walk(root, onerror=_unreadable):
            away = [name for name in folders if name.startswith(".") or (Path(folder) / name).is_symlink()]
            self._folders += [Path(folder) / name for name in away]
            folders[:] = [name for name in folders if name not in away]
            hidden = [name for name in names if name.startswith(".")]
            self._hidden += [Path(folder) / name for name in hidden]
            for name in names:
                if not name.startswith("."):
                    self.add(Path(folder) / name)

    def notes(self, root: Path) -> Iterator[str]:
        """What was left out, a line a kind."""
        if self._folders:
            yield f"hidden and linked folders not read: {_listed(_relative(self._folders, root))}"
        if self._hidden:
            yield f"hidden files not read: {_listed(_relative(self._hidden, root))}"
        if odd := [kind for kind in self._odd if kind]:
            yield f"only regular files are read: {_listed(odd)}"


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


def _relative(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(dict.fromkeys(names))[:_SHOWN]) + more
