"""The provenance of runs: their machines and versions, and the commands and specs that make them again."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import pandas as pd
from ruamel.yaml import YAML

from dsabench.analysis.scope import Scope
from dsabench.analysis.variants import variant_order
from dsabench.errors import StoreError
from dsabench.plain import count
from dsabench.spec.rerun_command import spec_as_command
from dsabench.store import SweepRecord, read_run, readable_sweeps

MOST_COMMANDS = 100
"""Single-run commands that are listed."""

_FIRST = ("device_name", "precision", "cpu", "torch", "cuda", "cudnn", "driver", "python", "numpy", "platform")
"""Fields of an environment that come before the others."""

_PREFIX = "environment."

NO_ENVIRONMENT = ("audit", "data_notes", "start")
"""Fields of a record's environment that are about the run itself: what its audit found, its data, its origin."""

TEXT_VERSIONS = "text_versions"
"""The field with the versions of the distributions that a text is of: no part of the machine, but different versions
are a reason for a different text."""


class Environment(NamedTuple):
    """A machine with its versions, and how many runs it made."""

    n_runs: int
    fields: dict[str, str]
    """Recorded fields, `dsabench` being its version; fields that none of the runs has are left out."""


class SweepSource(NamedTuple):
    """How a sweep was started."""

    id: str
    command: str | None
    """The command line, the program's name without its folder; None when it is not recorded."""
    yaml: str
    """Its spec: a file that `dsabench sweep --config` accepts."""


class RunSource(NamedTuple):
    """The command of one run."""

    variant: str
    length: int
    seed: int
    command: str


def environments(runs: pd.DataFrame) -> list[Environment]:
    """The different environments of `runs`, that of most runs first."""
    names = [str(c).removeprefix(_PREFIX) for c in runs.columns if str(c).startswith(_PREFIX)]
    names = [name for name in names if name.split(".")[0] not in (*NO_ENVIRONMENT, TEXT_VERSIONS)]
    names.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    columns = {"dsabench": "version"} | {name: _PREFIX + name for name in names}
    texts = pd.DataFrame(
        {name: [_text(value) for value in runs[column]] for name, column in columns.items() if column in runs}
    )
    found = [
        Environment(len(group), {str(name): text for name, text in group.iloc[0].items() if texts[name].any()})
        for _, group in texts.groupby(list(texts.columns), sort=True)
    ]
    return sorted(found, key=lambda environment: -environment.n_runs)


def data_notes(runs: pd.DataFrame) -> list[str]:
    """The notes of the data's preparation, each once."""
    found: dict[str, None] = {}
    for value in runs.get(_PREFIX + "data_notes", pd.Series(dtype=object)).dropna().unique():
        try:
            notes = json.loads(value)
        except ValueError:
            continue
        if isinstance(notes, list):
            found |= dict.fromkeys(str(note) for note in notes)
    return list(found)


def lineage(runs: pd.DataFrame) -> list[str]:
    """A line for each trained model that runs start from: its id, steps, loss, and the digest of its weights."""
    if f"{_PREFIX}start.weights" not in runs:
        return []
    known = runs[runs[f"{_PREFIX}start.weights"].notna()].drop_duplicates("run_id")
    found = []
    for weights, mine in known.groupby(f"{_PREFIX}start.weights", sort=False):
        about = {name: mine.iloc[0].get(f"{_PREFIX}start.{name}") for name in ("run", "steps", "val_loss")}
        name = "a checkpoint without a record" if pd.isna(about["run"]) else str(about["run"])
        loss = "" if pd.isna(about["val_loss"]) else f", own val_loss {float(str(about['val_loss'])):.4f}"
        steps = "an unknown number of" if pd.isna(about["steps"]) else f"{int(str(about['steps'])):,}"
        found.append(f"{name}: {steps} steps behind it{loss}, weights {str(weights)[:16]}; {count(len(mine), 'run')}")
    return found


def warnings(runs: pd.DataFrame) -> list[str]:
    """Notes on settings of the data that change what the losses mean, and how many runs have them."""
    overlapping = runs["data.split"] == "overlapping" if "data.split" in runs else pd.Series(False, index=runs.index)
    n = runs.loc[overlapping, "run_id"].nunique()
    if not n:
        return []
    return [
        f"{n} of {runs['run_id'].nunique()} runs have data.split = overlapping: their validation windows overlap "
        "training windows, so their losses measure memory, not generalisation"
    ]


def newest(runs: pd.DataFrame) -> str:
    """The day on which the last of `runs` was written: 2026-01-31, in UTC; empty when none says."""
    updated = runs["updated"].dropna()
    return "" if updated.empty else f"{updated.max():%Y-%m-%d}"


def sweep_sources(scope: Scope) -> list[SweepSource]:
    """The sweep that the scope is, or else every one that has runs of it."""
    if scope.sweep is not None:
        return [_source(scope.sweep)]
    here = set(scope.runs["run_id"])
    return [_source(record) for record in readable_sweeps(scope.store)[0] if here & set(record.run_ids)]


def run_sources(store: Path, labelled: pd.DataFrame) -> list[RunSource]:
    """The command of one run (its lowest seed) for each variant and length of the finished ones."""
    done = labelled[labelled["finished"]]
    first = done.sort_values("seed", kind="stable").drop_duplicates(["variant", "length"])
    found: list[RunSource] = []
    for run in sorted(first.to_dict("records"), key=lambda run: (run["length"], variant_order(run["variant"]))):
        if len(found) == MOST_COMMANDS:
            break
        try:
            command = spec_as_command(read_run(store, str(run["run_id"])).spec)
        except StoreError:  # gone since the store was read
            continue
        found.append(RunSource(str(run["variant"]), int(run["length"]), int(run["seed"]), command))
    return found


def as_yaml(spec: Mapping[str, Any]) -> str:
    """A sweep's plain spec as YAML; innermost mappings and lists on one line."""
    yaml = YAML(typ="rt", pure=True)  # it keeps the order of the fields
    yaml.default_flow_style = None
    yaml.allow_unicode = False  # what would turn a line around is spelt out
    yaml.width = 10_000
    stream = io.StringIO()
    yaml.dump(dict(spec), stream)
    return stream.getvalue()


def _source(record: SweepRecord) -> SweepSource:
    words = list(record.command or [])
    words[:1] = [PureWindowsPath(word).name for word in words[:1]]
    return SweepSource(record.id, shlex.join(words) or None, as_yaml(record.spec))


def _text(value: Any) -> str:
    if value is None or pd.isna(value):
        return ""
    if str(value) in ("True", "False"):  # a column may hold numpy's
        return "yes" if str(value) == "True" else "no"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value)
