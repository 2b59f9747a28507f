"""An audit's table on stdout, at most 80 columns wide, and its JSON document."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from dsabench.cli.safe_text import printable
from dsabench.cli.views.results_table_text import columns

if TYPE_CHECKING:
    from dsabench.audit.experiment_checks import Examination

_HEADINGS = ("check", "result", "detail")
_DETAIL = 49
"""Characters of a line of the last column: 80 with the two before it."""


def audit_document(found: Sequence[Examination]) -> dict[str, Any]:
    """The document of `audit --json`."""
    return {"failed": any(one.failed for one in found), "audits": [one.document() for one in found]}


def audit_lines(found: Sequence[Examination], console: Console) -> None:
    """Print one table with a block for each attention, and the conclusion in a sentence."""
    console.print(columns(_HEADINGS, _rows(found), console, left=_HEADINGS), crop=False)
    failed = [printable(one.run_id or f"{one.attention} L={one.length}") for one in found if one.failed]
    if failed:
        last = f"Not to be believed: {', '.join(failed)}."
    else:
        last = "Nothing wrong was found. What an audit cannot see: dsabench audit --help."
    console.print(Text(last), soft_wrap=True)


def _rows(found: Sequence[Examination]) -> Iterator[tuple[str, str, str]]:
    for i, one in enumerate(found):
        if i:
            yield "", "", ""
        name = printable(one.run_id or f"{one.attention} L={one.length} seed={one.seed}")
        lines = textwrap.wrap(f"{name}: {one.weights} weights, {one.device}, {one.audit.seconds:.1f} s", _DETAIL)
        yield "run" if one.run_id else "attention", "", lines[0]
        yield from (("", "", line) for line in lines[1:])
        for check in one.checks:
            first, *rest = textwrap.wrap(printable(check.detail), _DETAIL) or [""]
            yield check.check, check.result, first
            yield from (("", "", line) for line in rest)
