"""The rows of the guide's table of other people's references: what is compared, with whom, and how closely.

`python tests/support/parity.py` writes the table into guide/parity.md anew; a test holds it equal.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "dsabench" / "guide" / "parity.md"
BEGIN = "<!-- the table: tests/support/parity.py writes it -->\n"

Measure = Literal["largest difference", "largest difference over largest value", "rms difference over rms"]
_OF = {
    "largest difference": "",
    "largest difference over largest value": " of the largest value",
    "rms difference over rms": " of the rms, in rms",
}


@dataclass(frozen=True)
class Parity:
    """One row. A test asks `check`, so that the table names no other tolerance than the one that holds."""

    what: str
    """What of dsabench is compared."""

    theirs: str
    """With whose implementation, and where it is."""

    within: float
    """Most that the two may differ; 0 means the same."""

    measure: Measure = "largest difference"

    def difference(self, ours: Any, theirs: Any) -> float:
        """The two arrays' difference by this row's measure, computed in fp64. Both need one shape."""
        a, b = (np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, np.float64) for x in (ours, theirs))
        assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
        if not a.size:
            return 0.0
        if self.measure == "rms difference over rms":
            return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))
        apart = float(np.abs(a - b).max())
        return apart if self.measure == "largest difference" else apart / max(float(np.abs(b).max()), 1e-30)

    def check(self, ours: Any, theirs: Any) -> None:
        """Fail where they differ by more than `within`, or where either has a number that is none."""
        apart = self.difference(ours, theirs)
        assert apart <= self.within, f"{self.what}: {self.measure} {apart:.3g}, allowed {self.within:g} ({self.theirs})"


def rows() -> list[tuple[Parity, str]]:
    """Every `Parity(...)` that a test module declares, with the module's path, read without importing any."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "Parity(" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _name(node.value) == "Parity":
                positional = [ast.literal_eval(value) for value in node.value.args]
                named = {str(word.arg): ast.literal_eval(word.value) for word in node.value.keywords}
                found.append((Parity(*positional, **named), path.relative_to(TESTS.parent).as_posix()))
    return found


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def table() -> str:
    """The table in Markdown."""
    lines = ["| what | compared with | differ by at most | tested in |", "| --- | --- | --- | --- |"]
    for row, path in rows():
        most = "nothing" if row.within == 0 else f"{row.within:.0e}{_OF[row.measure]}".replace("e-0", "e-")
        lines.append(f"| {row.what} | {row.theirs} | {most} | [{Path(path).stem}](../../{path}) |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with its table made anew."""
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return head + BEGIN + "\n" + table()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
