"""`packages`: the .py files of the installed distributions that dsabench depends on, a large corpus of code offline.

Distributions: the runtime requirements of dsabench and theirs in turn. A requirement with a marker (of a platform, a
Python, an extra) is not followed, so that every machine has the same list. Of each, the files that its RECORD lists and
gives a SHA-256, by path: a file that was changed since is an error.

Wheels of one version differ between platforms, which the corpus must not: \\r\\n is read as \\n, and what a build or
its repair for Windows writes is left out by its name. Left out by its content is what is no text that somebody wrote.
The rules are RULES; empty files and exact duplicates are dropped as in every source.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from dsabench.data.cache import cache_folder, digest, replace_file
from dsabench.data.sources.documents import Document
from dsabench.data.sources.readers import text_parts
from dsabench.data.sources.source import Source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

FORMAT = 1
"""Raise it when a rule changes: it is part of the key of what was found to be left out."""

RULES = {
    "build": "of a build: version.py, __config__.py and the like, a package's top __init__.py, numpy.distutils",
    "generated": "generated: a comment in the first 20 lines says so, or a folder is called generated",
    "table": "a table: fewer than half of the characters that are not white space are ASCII letters or _",
    "not UTF-8": "not UTF-8 text",
}
"""What is left out; a file counts for the first rule that it meets."""

_TOP = "dsabench"

_BUILD = re.compile(
    r"(.*/)?(__config__|_build_config|_*(generated_)?version(_meson)?)\.py|([^/]+/)?__init__\.py|numpy/distutils/.*"
)
"""What builds write, by path. These alone were seen to differ between wheels of one version (Linux, macOS and Windows,
CPU and CUDA, Python 3.11 and 3.13): of torch version.py; of numpy and scipy __config__.py, of contourpy
_build_config.py; the top __init__.py of wheels for Windows, to which delvewheel adds how their libraries are loaded;
and numpy.distutils, which wheels for Python 3.12 and later lack."""

_GENERATED = re.compile(rb"^\s*#.*(generated|do not (edit|modify))", re.IGNORECASE)

_HEAD_LINES = 20

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"

_SPACE = b" \t\n\r\f\v"

_MEND = "mend it with: pip install --force-reinstall --no-deps"

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")


class _File(NamedTuple):
    """A .py file of a distribution."""

    path: Path
    sha256: str
    """As RECORD writes it: URL-safe base64 without padding."""
    owner: str
    """`NAME==VERSION` of its distribution."""


def find(data: DataSpec, rest: str, tell: Callable[[str], None]) -> Source:
    """The files in order of their paths inside site-packages. Raises DataError: a distribution is missing or was not
    installed from a wheel, or a file is not what its RECORD says."""
    distributions = _closure()
    files: dict[str, _File] = {}
    for name in sorted(distributions):
        files |= _recorded(distributions[name])
    left_out = _left_out(files, tell)
    labels = tuple(sorted(files.keys() - left_out.keys()))
    by_path = {files[label].path: files[label] for label in labels}

    def read(path: Path) -> Iterator[Document]:
        text = _content(by_path[path]).decode("utf-8-sig").replace("\r\n", "\n")
        yield Document(0, text_parts([text]))

    counts = Counter(left_out.values())
    notes = [f"{len(labels):,} .py files of {len(distributions)} distributions"]
    notes += [f"left out: {counts[rule]:,} of {len(files):,} files, {RULES[rule]}" for rule in RULES if counts[rule]]
    return Source(
        "packages",
        tuple(files[label].path for label in labels),
        labels,
        read,
        ("packages", FORMAT),
        tuple(notes),
        versions={name: found.version for name, found in sorted(distributions.items())},
    )


def _closure() -> dict[str, metadata.Distribution]:
    """The distributions that every installation of dsabench has, without itself, by their normalised names."""
    found: dict[str, metadata.Distribution] = {}
    todo = [(_TOP, "")]
    while todo:
        name, asked_by = todo.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            why = f"{asked_by} depends on it" if asked_by else "its metadata say what it depends on"
            raise DataError(
                f"data.source = 'packages' needs the distribution {name} ({why}), which is not installed; install it "
                f"with: pip install {name if asked_by else '-e . (or dsabench)'}"
            ) from None
        for line in found[name].requires or []:
            if ";" not in line and (requirement := _REQUIREMENT.match(line)):
                todo.append((requirement[1], name))
    del found[_TOP]
    return found


def _recorded(distribution: metadata.Distribution) -> dict[str, _File]:
    """{path inside site-packages: file} of a distribution's RECORD. Raises DataError where there is none that lists
    installed files: eggs, zip files, editable installs and packages of a system."""
    about = distribution.metadata
    owner = f"{about['Name']}=={about['Version']}"
    record, editable = distribution.read_text("RECORD"), _is_editable(distribution)
    if record is None or editable:
        how = "is an editable install" if editable else "has no RECORD (an egg, or a package of the system)"
        raise DataError(f"data.source = 'packages': {owner} {how}; install it from a wheel: pip install {owner}")
    return _listed(record, owner, Path(str(distribution.locate_file(""))))


@lru_cache(maxsize=1024)
def _listed(record: str, owner: str, root: Path) -> dict[str, _File]:
    """The .py files of a RECORD below site-packages. A sweep asks for each of its runs. Raises DataError."""
    found = {}
    for label, hashed, *_ in csv.reader(record.splitlines()):
        if not label.endswith(".py") or ".." in label.split("/") or Path(label).is_absolute():
            continue
        if not hashed.startswith("sha256="):
            raise DataError(f"data.source = 'packages': RECORD of {owner} gives no SHA-256 of {label}; {_MEND} {owner}")
        found[label] = _File(root / label, hashed.removeprefix("sha256="), owner)
    return found


def _is_editable(distribution: metadata.Distribution) -> bool:
    try:
        url = json.loads(distribution.read_text("direct_url.json") or "{}")
        return bool(url.get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):  # not what PEP 610 says: not of pip
        return False


def _left_out(files: dict[str, _File], tell: Callable[[str], None]) -> dict[str, str]:
    """{path: rule} of the files that are left out; from the cache where the same RECORDs were judged before."""
    by_name = {label: "build" for label in files if _BUILD.fullmatch(label)}
    looked_at = {label: file for label, file in files.items() if label not in by_name}
    key = digest("packages", FORMAT, [[label, file.sha256] for label, file in sorted(looked_at.items())])
    path = cache_folder("packages") / f"{key[:32]}.json"
    by_content = _load(path)
    if by_content is None:
        tell(f"looking through {len(looked_at):,} files of installed packages")
        rules = ((label, _rule(label, _content(file))) for label, file in looked_at.items())
        by_content = {label: rule for label, rule in rules if rule}
        text = json.dumps(by_content, indent=0, sort_keys=True)
        content = f"{digest(text)}\n{text}".encode()

        def write(temporary: Path) -> None:
            temporary.write_bytes(content)

        replace_file(path, write)
    return by_name | by_content


def _load(path: Path) -> dict[str, str] | None:
    try:
        whole, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    found: dict[str, str] | None = json.loads(text) if digest(text) == whole else None  # damaged: made anew
    return found


def _rule(label: str, content: bytes) -> str:
    """The rule by which a file is left out for its content; empty where it is not."""
    if "generated" in label.split("/") or any(map(_GENERATED.match, content.split(b"\n", _HEAD_LINES)[:_HEAD_LINES])):
        return "generated"
    printed = content.translate(None, _SPACE)
    if 2 * len(printed.translate(None, _LETTERS)) > len(printed):
        return "table"
    try:
        return "not UTF-8" if "\0" in content.decode() else ""
    except UnicodeDecodeError:
        return "not UTF-8"


def _content(file: _File) -> bytes:
    """The bytes of a file. Raises DataError when they are not what RECORD says."""
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file.path}: cannot be read: {error.strerror or error}; RECORD of {file.owner} lists it; "
            f"{_MEND} {file.owner}"
        ) from error
    found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    if found != file.sha256.rstrip("="):
        raise DataError(
            f"{file.path}: its SHA-256 is {found}, and RECORD of {file.owner} says {file.sha256}: the file was "
            f"changed; {_MEND} {file.owner}"
        )
    return content
