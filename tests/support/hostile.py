"""Hostile texts and files, and the small runs that meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resealed import write

EVIL = "\x1b]0;owned\x07\x1b[31m<script>alert(1)</script>|`x`\u202e\n# y"


FORMULA = "=cmd|' /C calc'!A0"


PLUGIN = """
from pathlib import Path
from typing import Literal
from dsabench.attention.dense import Dense
from dsabench.attention.registry import register
from dsabench.spec.attention import AttentionSpec

Path(CANARY).touch()

class MineSpec(AttentionSpec):
    kind: Literal["mine"] = "mine"

    def n_selected(self, length):
        return 4

@register
class Mine(Dense):
    spec_class = MineSpec

    def flops(self, stage):
        return {"a": 1.0}
"""


def tiny(corpus: Path, **more: Any) -> dict[str, Any]:
    return {
        "length": 16, "data.source": f"path:{corpus}", "data.tokenizer": "bytes", "data.val_share": 0.3,
        "model.d_model": 16, "model.n_heads": 2, "model.d_ff": 8, "model.n_layers": 1, "model.n_experts": 2,
        "train.steps": 3, "train.tokens_per_step": 32, "train.eval_tokens": 64, "engine.device": "cpu", **more,
    }  # fmt: skip


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file, and its seal with them: whoever means harm can do that."""
    write(path, {**json.loads(path.read_text()), **changes})


def odd(text: str) -> set[str]:
    return {character for character in text if not character.isprintable() and character != "\n"}


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))
