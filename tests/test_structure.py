"""The architecture: imports point left only, names say what is in a file, and looking at results loads no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import dsabench

PACKAGE = Path(dsabench.__file__).parent
ORDER = [
    "_version",
    "plain",
    "errors",
    "locks",
    "user_folders",
    "shutdown",
    "metrics",
    "spec",
    "data",
    "ops",
    "attention",
    "model",
    "engine",
    "progress",
    "store",
    "models",
    "audit",
    "compilation",
    "testing",
    "trackers",
    "sweeps",
    "bench",
    "analysis",
    "figures",
    "selection",
    "reproduction",
    "report",
    "guide",
    "cli",
    "notebook",
    "__main__",
]
"""Left to right: a room may import the rooms before it. `attention` is part of `model` and comes before it."""

TO_THE_REGISTRY = {("spec", "dsabench.attention.registry"), ("spec", "dsabench.attention.plugins")}
"""The imports that point right: to validate a plugin's settings, spec imports its file and asks for its class."""

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "configs"  # an installed package holds the configs, which are its users
}


def imports_of(path: Path) -> Iterator[str]:
    """Every module of dsabench that a file imports, wherever in the file; in TYPE_CHECKING blocks, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "dsabench":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dsabench")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def edges() -> Iterator[tuple[str, str]]:
    for module, path in MODULES.items():
        if module != "dsabench":  # its face imports what it hands on
            yield from ((module, other) for other in imports_of(path) if other != module)


def test_imports_point_left_only() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, other in edges()
        if other == "dsabench"
        or (ORDER.index(room(other)) > ORDER.index(room(module)) and (room(module), other) not in TO_THE_REGISTRY)
    ]
    assert not wrong


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("**/*.py"))} - {
        "__init__"
    }
    assert rooms - {"configs"} == set(ORDER)


def test_no_modules_import_each_other_in_a_circle() -> None:
    reached = defaultdict(set)
    faces = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    for module, other in edges():
        if (room(module), other) not in TO_THE_REGISTRY and module not in faces:
            reached[module].add(other)
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str] | None:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return None
        for other in sorted(reached[module]):
            if circle := visit(other, [*trail, module]):
                return circle
        done.add(module)
        return None

    for module in MODULES:
        assert visit(module, []) is None


def test_no_public_name_is_a_room() -> None:
    """`import dsabench.sweeps.plan` would put the room in the place of a function of its name."""
    assert not set(dsabench.__all__) & set(ORDER)


def test_nothing_is_written_past_a_frozen_dataclass() -> None:
    """By `object.__setattr__(x, ...)` or `vars(x)[...] = ...`."""
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert "object.__setattr__" not in text and not re.search(r"(vars\(\w+\)|__dict__)\[[^]]*\] = ", text), path


COMMANDS = PACKAGE / "cli" / "commands"


def test_no_two_files_share_a_name() -> None:
    """But a command, which may be called like what it calls, and the same part of sibling rooms (dsa/reference.py)."""
    places = defaultdict(list)
    for path in MODULES.values():
        if path.name != "__init__.py" and path.parent != COMMANDS:
            places[path.name].append(path)
    twice = {name: paths for name, paths in places.items() if len({path.parent.parent for path in paths}) > 1}
    # The rooms of the attentions are siblings, and those alone.
    siblings = {
        name: paths for name, paths in places.items() if len(paths) > 1 and paths[0].parents[1].name != "attention"
    }
    assert not twice | siblings


def test_a_first_line_names_what_the_file_holds() -> None:
    """A noun phrase, never a question: that begins with What, Which, How, Who, Where, When, Why or Whether."""
    asking = ("what", "which", "how", "who", "where", "when", "why", "whether")
    for path in MODULES.values():
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        assert first, f"{path} has no docstring"
        assert first.split()[0].lower().strip(":,") not in asking, f"{path}: {first}"


def test_help_version_and_guide_load_nothing_heavy() -> None:
    """torch and pandas take seconds to import; `--help` has half of one. All in one process, one after another."""
    code = (
        "import sys, dsabench\n"
        "from dsabench.cli.app import main\n"
        "for words in (['--help'], ['sweep', '--help'], ['--version'], ['guide']):\n"
        "    sys.argv = ['dsabench', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (words, end.code)\n"
        "    heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
        "print('all four')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "all four" in done.stdout


def test_reading_results_needs_no_torch() -> None:
    code = (
        "import dsabench, sys\n"
        "import dsabench.store, dsabench.analysis.results_table, dsabench.figures.sequence_length\n"
        "import dsabench.cli.views.results_table_text\n"
        "from dsabench.spec.run import RunSpec\n"
        "RunSpec.model_validate({'attention': {'kind': 'random'}})\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
