"""Damage to stored runs, as a disk or a hand does it: each JSON stays JSON unless its name says otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def record_digit(folder: Path) -> None:
    """Another first digit of the summary's loss."""
    _other_digit(folder / "run.json", '"val_loss": ')


def record_seed(folder: Path) -> None:
    """Another seed in the spec."""
    _other_digit(folder / "run.json", '"seed": ')


def record_cut(folder: Path) -> None:
    """Half a record, which cannot be read."""
    path = folder / "run.json"
    path.write_bytes(path.read_bytes()[:300])


def seal_removed(folder: Path) -> None:
    """A record of 0.3 without its seal."""
    path = folder / "run.json"
    document = json.loads(path.read_bytes())
    del document["seal"]
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def metrics_digit(folder: Path) -> None:
    """Another first digit of the last evaluation's loss."""
    _other_digit(folder / "metrics.jsonl", '"val_loss": ')


def metrics_middle(folder: Path) -> None:
    """Another digit in a step of the first record."""
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 0', '"step": 1', 1))


def metrics_end(folder: Path) -> None:
    """The last record is lost."""
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def metrics_gone(folder: Path) -> None:
    """No metrics at all."""
    (folder / "metrics.jsonl").unlink()


ALL: tuple[Callable[[Path], None], ...] = (
    record_digit,
    record_seed,
    record_cut,
    seal_removed,
    metrics_digit,
    metrics_middle,
    metrics_end,
    metrics_gone,
)

UNSEALED = (record_digit, record_cut, metrics_digit, metrics_end, metrics_gone)
"""What is noticed of a run without a seal too: its parts contradict each other."""


def flip(path: Path, place: int) -> None:
    """One bit of the byte at `place`, counted from the end where it is negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _other_digit(path: Path, after: str) -> None:
    text = path.read_text()
    place = text.rindex(after) + len(after)
    digit = "5" if text[place] != "5" else "4"
    path.write_text(text[:place] + digit + text[place + 1 :])
