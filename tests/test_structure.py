"""The architecture holds: imports point left only, and looking at results never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dsabench

PACKAGE = Path(dsabench.__file__).parent
ORDER = [
    "errors",
    "stopping",
    "parts",
    "spec",
    "data",
    "kernels",
    "attention",
    "model",
    "engine",
    "store",
    "trackers",
    "testing",
    "planning",
    "microbatches",
    "runner",
    "launch",
    "bench",
    "analysis",
    "plots",
    "cli",
]
"""Left to right: a part may import the parts before it. `attention` is part of `model` and comes before it."""

ALLOWED = {("spec", "attention")}
"""spec looks attention.kind up in the registry when it validates."""


def imports_of(path: Path) -> set[str]:
    """The first component under dsabench of everything that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dsabench":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dsabench."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dsabench.")}
    return found


def test_imports_point_left_only() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "configs"):  # an installed package holds the configs, whose plugins are users of it
            continue
        for other in imports_of(path) & set(ORDER):
            if ORDER.index(other) > ORDER.index(part) and (part, other) not in ALLOWED:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong


def test_every_part_has_its_place() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert parts - {"configs", "py.typed"} == set(ORDER)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.argv = ['dsabench', '--help']; from dsabench.cli.app import main; main()",
        "import sys; sys.argv = ['dsabench', 'sweep', '--help']; from dsabench.cli.app import main; main()",
        "import sys; sys.argv = ['dsabench', '--version']; from dsabench.cli.app import main; main()",
        "import dsabench, sys; sys.exit(0)",
    ],
)
def test_help_and_version_load_nothing_heavy(code: str) -> None:
    """torch and pandas take seconds to import; `--help` has half of one."""
    probe = (
        "import atexit, sys\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'pyarrow', 'numpy'}\n"
        "atexit.register(lambda: print('loaded:', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe + code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stderr


def test_reading_results_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import dsabench, sys\n"
        "import dsabench.store, dsabench.analysis.experiment, dsabench.plots.experiment, dsabench.cli.tables\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
