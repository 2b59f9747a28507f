"""Folders that a user may not have: a home, and a place for temporary files."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from dsabench.errors import DsabenchError


def expanded(name: str | Path, error: type[DsabenchError]) -> Path:
    """`name` as a path, a leading ~ or ~USER replaced by that user's home folder; `error` where there is none."""
    if not str(name).startswith("~"):  # which a Path forgets of ./~
        return Path(name)
    try:
        return Path(name).expanduser()
    except RuntimeError:
        user = re.split(r"[/\\]", str(name))[0][1:]
        reason = f"there is no user {user!r}; put ./ before a name that begins with ~" if user else no_home()
        advice = "" if user else "; set HOME, or give the path without ~"
        raise error(f"{name}: {reason}{advice}") from None


def no_home() -> str:
    """Why the home folder of this process's user is not known, in words."""
    named = os.environ.get("HOME")
    if named is not None:
        return f"HOME = {named!r} is no absolute path"
    user = f", and user id {os.getuid()} is not in the password database" if hasattr(os, "getuid") else ""
    return f"the home folder is not known: HOME is not set{user}"


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed at the end of the block. Raises DsabenchError where no place for one can be written."""
    try:
        return tempfile.TemporaryDirectory(prefix="dsabench-", ignore_cleanup_errors=True)
    except OSError as error:
        named = os.environ.get("TMPDIR")
        place = f"TMPDIR = {named}" if named else "/tmp and its like"
        raise DsabenchError(
            f"no place for temporary files: {place} cannot be written ({error.strerror or error}); "
            "set the environment variable TMPDIR to a folder that can"
        ) from error
