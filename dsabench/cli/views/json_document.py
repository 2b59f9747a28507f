"""JSON documents on stdout: what a command prints with --json."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_UNUSUAL = re.compile(r"[^\n -~]")


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN and infinities become null, which JSON can say."""
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False)
    # JSON's own escapes for what could command a terminal or has no encoding: the document stays the same
    print(_UNUSUAL.sub(lambda c: c[0] if c[0].isprintable() else json.dumps(c[0])[1:-1], text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
