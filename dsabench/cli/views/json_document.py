"""JSON documents on stdout: what a command prints with --json."""

from __future__ import annotations

import json
import re
from typing import Any

from dsabench.plain import json_values

_UNUSUAL = re.compile(r"[^\n -~]")


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN and infinities become null, which JSON can say."""
    text = json.dumps(json_values(document), indent=2, ensure_ascii=False)
    # JSON's own escapes for what could command a terminal or has no encoding: the document stays the same
    print(_UNUSUAL.sub(lambda c: c[0] if c[0].isprintable() else json.dumps(c[0])[1:-1], text))
