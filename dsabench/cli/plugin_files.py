"""The files of a new attention: the worked example under another name."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
from pathlib import Path

from dsabench.errors import SpecError
from dsabench.spec.attention import BUILT_IN, BY_EVERY_NAME
from dsabench.spec.config import config_path

_KIND, _CLASS = "my_attention", "MyAttention"
"""What the example calls itself and its classes."""

_LONGEST = 40
"""Characters of a name: it is part of ids and columns of tables."""


def new_files(name: str, folder: Path) -> dict[Path, str]:
    """Path and text of plugin, test and sweep config of an attention called `name`.

    Raises:
        SpecError: `name` cannot name an attention and its file, or one of the files is there already.
    """
    example = config_path("seed").parent / "custom_attention"
    plugin, test, config = (
        (example / file).read_text(encoding="utf-8") for file in (f"{_KIND}.py", f"test_{_KIND}.py", "sweep.yaml")
    )
    _check(name, plugin)
    files = {folder / f"{name}.py": plugin, folder / f"test_{name}.py": test, folder / f"{name}.yaml": config}
    for path in files:
        if path.exists() or path.is_symlink():
            raise SpecError(f"{path} is there already and is not replaced; choose another name, or another --out")
    return {path: text.replace(_KIND, name).replace(_CLASS, _class(name)) for path, text in files.items()}


def write_new(files: dict[Path, str]) -> None:
    """Write files that are not there yet, their folder too: all of them, or SpecError and none."""
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for one in written:
            one.unlink(missing_ok=True)
        raise SpecError(f"{path} cannot be written: {error.strerror or error}; name another folder (--out)") from None


def _check(name: str, plugin: str) -> None:
    right = re.sub(r"\W+|(?<=[a-z0-9])(?=[A-Z])", "_", name, flags=re.ASCII).strip("_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name, re.ASCII) or len(name) > _LONGEST:
        hint = f", for example {right}" if re.fullmatch(r"[a-z][a-z0-9_]{0,39}", right, re.ASCII) else ""
        raise SpecError(f"NAME {name!r}: small letters, digits and _, at most {_LONGEST}, a letter first{hint}")
    if name in BY_EVERY_NAME:
        raise SpecError(f"NAME {name!r} is a built-in attention ({', '.join(BUILT_IN)}); choose another")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name.startswith(("test_", "conftest")):
        raise SpecError(f"NAME {name!r} means something to Python or pytest; choose another, for example my_{name}")
    if importlib.util.find_spec(name) is not None:
        raise SpecError(f"NAME {name!r} is a module that Python can import, which {name}.py would hide; choose another")
    taken = {_name(node) for node in ast.walk(ast.parse(plugin))}
    if clash := sorted(taken & {_class(name), f"{_class(name)}Spec"}):
        raise SpecError(f"NAME {name!r} gives a class {clash[0]}, which the file uses already; choose another")


def _class(name: str) -> str:
    """`my_gate` as `MyGate`."""
    return "".join(part.capitalize() for part in name.split("_"))


def _name(node: ast.AST) -> str:
    """The name that a node of Python's syntax reads or binds; the example's own classes are none."""
    name = getattr(node, "id", None) or getattr(node, "asname", None) or getattr(node, "name", None) or ""
    return "" if name.startswith(_CLASS) else str(name)
