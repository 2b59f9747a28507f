"""An audit's table on stdout, and its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dsabench.cli.safe_text import printable
from dsabench.cli.views.text_table import Cell, Column, print_table, say

if TYPE_CHECKING:
    from dsabench.audit.experiment_checks import Examination

_COLUMNS = (
    Column("check", left=True),
    Column("result", left=True),
    Column("detail", left=True, shorten="wrap", least=24),
)
_STYLES = {"ok": "green", "LEAK": "bold red", "FAIL": "bold red"}


def audit_document(found: Sequence[Examination]) -> dict[str, Any]:
    """The document of `audit --json`."""
    return {"failed": any(one.failed for one in found), "audits": [one.document() for one in found]}


def audit_lines(found: Sequence[Examination], console: Console) -> None:
    """Print one table with a block for each attention, and the conclusion in a sentence."""
    print_table(console, _COLUMNS, _rows(found))
    failed = [printable(one.run_id or f"{one.attention} L={one.length}") for one in found if one.failed]
    if failed:
        last = f"Not to be believed: {', '.join(failed)}."
    else:
        last = "Nothing wrong was found. What an audit cannot see: dsabench audit --help."
    say(console, last)


def _rows(found: Sequence[Examination]) -> Iterator[Sequence[str | Cell]]:
    for i, one in enumerate(found):
        if i:
            yield ()
        name = one.run_id or f"{one.attention} L={one.length} seed={one.seed}"
        about = f"{name}: {one.weights} weights, {one.device}, {one.audit.seconds:.1f} s"
        yield Cell("run" if one.run_id else "attention", "bold"), "", Cell(about, "bold")
        for check in one.checks:
            yield check.check, Cell(check.result, _STYLES.get(check.result, "")), check.detail
