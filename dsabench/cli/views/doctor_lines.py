"""The lines of `dsabench doctor`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from dsabench.cli.console import stdout_console
from dsabench.cli.machine_checks import FAIL, OK, WARN, Check
from dsabench.cli.safe_text import printable

_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
_INDENT = 16
_MOST_COLUMNS = 120


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """Every check, and whether none failed, for `--json`."""
    return {"ok": all(check.state != FAIL for check in checks), "checks": [check._asdict() for check in checks]}


def print_check(check: Check) -> None:
    """State, name and what was found; the mend below."""
    head, *rest = _wrapped(check.found)
    line = Text(f"{check.state:4}", style=_STYLES[check.state])
    line.append(f"  {check.name:10}{head}", style="default not bold")
    _print(line)
    for text in [*rest, *_wrapped(f"mend: {check.mend}" if check.mend else "")]:
        _print(Text(" " * _INDENT + text))


def print_sum(checks: Sequence[Check]) -> None:
    """How many failed and how many warn."""
    failed, warned = (sum(check.state == state for check in checks) for state in (FAIL, WARN))
    parts = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((failed, "failure"), (warned, "warning")) if n]
    _print(Text(f"\n{', '.join(parts) or 'all is well'}"))


def _wrapped(text: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, _MOST_COLUMNS) - _INDENT
    return textwrap.wrap(printable(text), width, break_long_words=False, break_on_hyphens=False)


def _print(text: Text) -> None:
    stdout_console().print(text, soft_wrap=True)
