"""Values that the shell completes: names of runs, sweeps, configs, fields, attentions, metrics, figures, topics.

A completion must be quick and silent: it reads names of files and lists that load neither torch nor pandas, and
whatever goes wrong gives no proposal. After a comma the next value of a list is completed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

_RECORD, _SWEEPS = "run.json", "sweeps"
"""Names in a store, as in store/layout.py, whose room loads pandas."""

Completer = Callable[[typer.Context, str], list[str]]


def _quiet(values: Callable[[Any, str], Iterable[str]]) -> Completer:
    """A completer of what `values(context, begun)` lists; of it those are proposed that go on from what was begun."""

    @functools.wraps(values)
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        try:
            return [f"{before}{comma}{value}" for value in values(ctx, begun) if value.startswith(begun)]
        except Exception:  # the prompt of a shell is no place for an error, whatever it is
            return []

    complete.__annotations__ = {"ctx": typer.Context, "incomplete": str}  # by these Typer passes the arguments
    del complete.__wrapped__  # or Typer would look at the annotations of `values`
    return complete


def _store(ctx: Any) -> Path:
    return Path(ctx.params.get("store") or os.environ.get("DSABENCH_STORE") or "runs")


def _names(folder: Path) -> Iterable[str]:
    return (path.name for path in folder.iterdir())


def _is_run(folder: Path) -> bool:
    return (folder / _RECORD).is_file()


def _safe(names: Iterable[str]) -> list[str]:
    """Those that are ids, in order: a shell executes what other names of somebody else's store may hold."""
    return sorted(name for name in names if re.fullmatch(r"\w[\w.-]*", name, re.ASCII))


@_quiet
def runs(ctx: Any, begun: str) -> Iterable[str]:
    """Ids of the runs in the store that `--store` names."""
    return _safe(name for name in _names(_store(ctx)) if name.startswith(begun) and _is_run(_store(ctx) / name))


@_quiet
def sweeps(ctx: Any, begun: str) -> Iterable[str]:
    """Ids of the store's sweeps."""
    return _safe(name.removesuffix(".json") for name in _names(_store(ctx) / _SWEEPS) if name.endswith(".json"))


@_quiet
def configs(ctx: Any, begun: str) -> Iterable[str]:
    """Names of the shipped configs; files are left to the shell."""
    from dsabench.spec.config import shipped_configs

    return shipped_configs()


@_quiet
def attentions(ctx: Any, begun: str) -> Iterable[str]:
    """Names of the built-in attentions."""
    from dsabench.spec.attention import BUILT_IN

    return BUILT_IN


@_quiet
def metrics(ctx: Any, begun: str) -> Iterable[str]:
    """Names that `compare --metric` takes."""
    from dsabench.metrics import compared

    return compared()


@_quiet
def columns(ctx: Any, begun: str) -> Iterable[str]:
    """Columns of the store's index: measures and paths of fields."""
    from dsabench.metrics import columns as measures
    from dsabench.spec.field_list import built_in_fields

    return ["run_id", "status", "attention", *measures(), *(field.path for field in built_in_fields())]


@_quiet
def figures(ctx: Any, begun: str) -> Iterable[str]:
    """Names of the figures of `plot`."""
    from dsabench.figures.catalogue import FIGURES

    return FIGURES


@_quiet
def figure_formats(ctx: Any, begun: str) -> Iterable[str]:
    """Formats of `plot`."""
    from dsabench.figures.catalogue import FORMATS

    return FORMATS


@_quiet
def topics(ctx: Any, begun: str) -> Iterable[str]:
    """Topics of the guide."""
    from dsabench.guide.topics import pages

    return pages()


@_quiet
def trackers(ctx: Any, begun: str) -> Iterable[str]:
    """Names of the experiment trackers, and the other targets of an export."""
    from dsabench.trackers.names import TARGETS

    return TARGETS


@_quiet
def fields(ctx: Any, begun: str) -> Iterable[str]:
    """Paths of the fields of a spec."""
    from dsabench.spec.field_list import built_in_fields

    return dict.fromkeys(field.path for field in built_in_fields())


@_quiet
def assignments(ctx: Any, begun: str) -> Iterable[str]:
    """`FIELD=` for `--set`; behind it, the values of a field that takes one of few."""
    from dsabench.spec.field_list import built_in_fields

    if "=" in begun:
        return dict.fromkeys(f"{field.path}={choice}" for field in built_in_fields() for choice in field.choices)
    return dict.fromkeys(f"{field.path}=" for field in built_in_fields())


def one_of(*words: str) -> Completer:
    """A completer of these words."""
    return _quiet(lambda ctx, begun: words)


devices = one_of("auto", "cpu", "cuda", "mps")
"""Devices that `--device` takes."""
