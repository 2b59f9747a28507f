"""Ladders: named rungs of a sweep, each of which changes fields and keeps what the rungs before it changed.

ladder:
  as published: {}
  causal mask mended: {attention.kind: [dense, dsa]}     # an axis takes a list of values
  documents held out: {data.split: documents}            # any other field a value
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsabench.errors import SpecError

Ladder = dict[str, dict[str, Any]]
"""{rung: {field path: value}}."""


def read(content: Mapping[str, Any], origins: Mapping[str, str]) -> Ladder:
    """The ladder of a config file; `origins`: FILE:LINE of its paths. Raises SpecError for what is no ladder."""
    ladder: Ladder = {}
    for name, changes in content.items():
        origin = origins.get(f"ladder.{name}", "")
        if not isinstance(changes or {}, dict):
            raise SpecError(f"{origin}ladder.{name} = {changes!r} is not accepted; accepted: field paths with values")
        ladder[name] = dict(changes or {})
        for path in ladder[name]:
            if path.split(".")[0] in ("engine", "plugins"):
                where = origins.get(f"ladder.{name}.{path}", "")
                raise SpecError(f"{where}{path} is no part of what a run is, so a rung cannot change it")
    return ladder


def overridden(ladder: Ladder, path: str) -> Ladder:
    """The ladder after an override of `path`, which holds on all rungs: no rung then changes that field, a part of it,
    or a field that it is part of, but for one that takes the whole away: a rung without a parent (`start: null`) has
    none after an override of the parent's steps."""
    return {
        name: {
            other: value
            for other, value in changes.items()
            if not f"{other}.".startswith(f"{path}.") and (value is None or not f"{path}.".startswith(f"{other}."))
        }
        for name, changes in ladder.items()
    }


def of_a_start(ladder: Ladder, path: str, value: Any) -> Ladder:
    """The ladder after `start` as a whole was made a run or a checkpoint (`--from`): rungs that draw their weights
    (`start: null`) are left out, for they would start from it, too."""
    if path != "start" or not isinstance(value, Mapping) or value.get("parent"):
        return ladder
    return {name: changes for name, changes in ladder.items() if changes.get("start", ladder) is not None}
