"""Variants: groups of runs that may be averaged, their names, and the runs that do not count.

Runs are comparable over seeds when they agree in everything but the seed. Where runs differ in more than
attention, length and seed, the differing fields become part of the variant's name: `dsa top_k_ratio=0.25`. Corpora and
tokenizers are the same when their digests are, wherever they lie.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pandas as pd

from dsabench.analysis.rungs import RUNG, rungs_of
from dsabench.analysis.tuned_fields import tuned_fields
from dsabench.metrics import GAP, means, spreads
from dsabench.plain import visible
from dsabench.spec.attention import keys_kept
from dsabench.spec.identity import flatten
from dsabench.spec.run import RunSpec
from dsabench.store.table import DAMAGED

_UNCHECKED = {"tokens_per_step", "train_seconds", "vocab_size"}
"""Entries of a summary that must be positive numbers, which the store does not check."""

TOP_K, RATIO = "attention.top_k", "attention.top_k_ratio"
"""The fields that say how many keys a query keeps."""

_STACKS = {"attention.first_layers", "attention.layers"}
"""The fields that list the layers of a hybrid."""

_SECTIONS = set(RunSpec.model_fields) - {"length", "seed", "engine", "plugins", "allow_leak"}
"""Parts of the spec in which runs must agree; the others are axes of the table or do not change learning."""

_DIGEST = "fingerprint."
"""Prefix of the columns that hold content digests of corpus, tokenizer and plugin files."""

START = f"{_DIGEST}start"
"""The column that holds the identity of the trained model that a run starts from."""

_CONTENT = {"data.source": f"{_DIGEST}corpus", "data.tokenizer": f"{_DIGEST}tokenizer"}
"""Fields that may hold a path, and the column of what lies there: the same content is the same data anywhere."""


def label_variants(runs: pd.DataFrame, ignoring: Collection[str] = ()) -> pd.DataFrame:
    """`runs` (as the store loads them) with the metrics of tables as floats, a plain index, and these columns:

    variant   kind and differing fields; runs with the same length and variant differ in nothing but the seed
    setting   those of the fields that are not about attention: dense of the same setting is its partner
              (on a ladder the rung stands in their place: `dsa 2 causal mask mended`)
    finished  whether it is averaged: done, with a finite validation loss, and the newest of its seed
    reason    why it is not averaged, else ""

    Columns that `runs` lacks are added, without values. Fields `ignoring`, and those that a search chose, tell no
    variants or settings apart; runs that differ in them alone are still runs of their own.
    """
    labelled = runs.reset_index(drop=True).copy()
    ignoring = [*ignoring, *tuned_fields(runs)]
    for column in ("run_id", "attention", "status", "error"):
        values = labelled[column] if column in labelled else pd.Series(index=labelled.index, dtype=object)
        labelled[column] = pd.Series(
            [None if pd.isna(value) else str(value) for value in values], index=labelled.index, dtype=object
        )
    labelled["attention"] = labelled["attention"].map(visible, na_action="ignore")  # a name, wherever it is shown
    # What a damaged record says tells no variants apart.
    labelled["attention"] = labelled["attention"].mask(labelled["status"].isin(DAMAGED), None)
    for column in ("length", "seed", *spreads(), *means()):
        values = labelled[column] if column in labelled else pd.Series(index=labelled.index, dtype=float)
        numbers = pd.to_numeric(values, errors="coerce").astype("Float64").astype("float64")
        labelled[column] = numbers.where(numbers.abs() < math.inf)
    for column in _UNCHECKED & set(labelled.columns):
        numbers = pd.to_numeric(labelled[column], errors="coerce").astype("Float64").astype("float64")
        labelled[column] = numbers.where((numbers > 0) & (numbers < math.inf))
    labelled[GAP] = labelled["val_loss"] - labelled["train_loss"]
    leak = labelled["leak"] if "leak" in labelled else pd.Series(False, index=labelled.index)
    labelled["leak"] = leak.astype("boolean").fillna(False).astype(bool)
    if rungs_of(labelled):
        _name_on_rungs(labelled, ignoring)
    else:
        _name(labelled, ignoring)
    known = labelled[["status", "attention", "length", "seed", "val_loss"]]
    labelled["reason"] = [_reason(run) for run in known.to_dict("records")]
    _keep_newest(labelled, [field for field in ignoring if field in labelled])
    labelled["finished"] = labelled["reason"] == ""
    return labelled


def variant_order(variant: str) -> tuple[Any, ...]:
    """Sorting key: dense, dsa, then the others by name; numbers in a name by their value."""
    rank = {"dense": 0, "dsa": 1}.get(variant.split(" ")[0], 2)
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", variant)
    return (rank, *((0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)))


def within(variant: str, setting: str) -> str:
    """A variant's name without the fields of its setting, which all variants of that setting share."""
    fields = set(setting.split(" "))
    kind, *parts = variant.split(" ")
    return " ".join([kind, *(part for part in parts if part not in fields)])


def keys(runs: pd.DataFrame) -> pd.Series[float]:
    """k of each run by its spec, at most its length; NaN where the spec says none, and of a hybrid whose layers keep
    different numbers."""
    found = []
    numbers = runs.reindex(columns=["length", TOP_K, RATIO]).apply(pd.to_numeric, errors="coerce")
    numbers = numbers.astype("Float64").astype("float64")  # a record may hold anything
    for run in numbers.where(numbers.abs() < math.inf).to_dict("records"):
        length = 0 if pd.isna(run["length"]) else int(run["length"])
        top_k, ratio = (None if pd.isna(run[name]) else run[name] for name in (TOP_K, RATIO))
        known = length > 0 and (top_k is not None or ratio is not None)
        found.append(float(min(length, keys_kept(length, top_k, ratio))) if known else math.nan)
    return pd.Series(found, index=runs.index, dtype="float64").fillna(_keys_of_stacks(runs))


def _keys_of_stacks(runs: pd.DataFrame) -> pd.Series[float]:
    """`keys` of the hybrids among the runs, whose layers say them."""
    found = []
    for run in runs.reindex(columns=["length", *sorted(_STACKS)]).to_dict("records"):
        layers = [fields for field in sorted(_STACKS) for _, fields in _layers(run[field])]
        said = [(run["length"], one[TOP_K], one.get(RATIO, "")) for one in layers if TOP_K in one]
        each = keys(pd.DataFrame(said, columns=["length", TOP_K, RATIO])).tolist() if said else []
        found.append(each[0] if each and len(set(each)) == 1 else math.nan)
    return pd.Series(found, index=runs.index, dtype="float64")


def scored_unit(task_accuracy: Iterable[float]) -> str:
    """What the losses of runs are per: `token`, `answer` when all are of tasks, which alone have a task accuracy, and
    `token or answer` of both kinds."""
    tasks = {math.isfinite(value) for value in task_accuracy}
    return " or ".join(word for is_task, word in ((False, "token"), (True, "answer")) if is_task in tasks) or "token"


def display_name(variant: str, setting: str = "") -> str:
    """A variant as tables and legends write it: `dsa top_k_ratio=0.25` is DSA k=0.25L.

    In a table of one `setting` its fields, the same in every row, are left out.
    """
    kind, space, fields = within(variant, setting).partition(" ")
    fields = re.sub(r"(^| )top_k_ratio=([0-9.e+-]+)(?= |$)", r"\1k=\2L", fields)
    fields = re.sub(r"(^| )top_k=(\d+)(?= |$)", r"\1k=\2", fields)
    return ("DSA" if kind == "dsa" else kind) + space + fields


def _name(labelled: pd.DataFrame, ignoring: Collection[str]) -> None:
    """Add variant and setting: fields of the spec first, and content digests where these leave runs alike."""
    columns = [str(column) for column in labelled.columns]
    texts = {
        column: _texts(labelled[column])
        for column in columns
        if (_is_field(column) and column not in ignoring) or column.startswith(_DIGEST)
    }
    for field in _STACKS & texts.keys():
        texts[field] = _short_stacks(labelled[field])
    for field, digest in _CONTENT.items():
        if field in texts and digest in texts:
            texts[field] = _one_name_each(texts[field], texts[digest])
    kinds = labelled["attention"].fillna("")
    known = kinds != ""
    labels: dict[str, pd.Series[str]] = {}  # field -> " name=value" of each run, "" where it tells nothing apart
    for field in filter(_is_field, texts):
        text = texts[field]
        if text.nunique() < 2:  # most fields
            continue
        if field.startswith("attention."):  # a field of one kind only tells that kind's runs apart
            differs = text[known].groupby(kinds[known]).transform("nunique").reindex(labelled.index) > 1
        else:
            differs = known & (text[known].nunique() > 1)
        if differs.any():
            labels[field] = text.where(differs, "")
    short = _short_names(list(labels))

    def joined(fields: list[str]) -> pd.Series[str]:
        out = pd.Series("", index=labelled.index, dtype=object)
        for field in fields:
            out = out + [f" {short[field]}={text}" if text else "" for text in labels[field]]
        return out

    labelled["setting"] = joined([field for field in labels if not field.startswith("attention.")])
    labelled["variant"] = kinds + joined(list(labels))
    for field in texts:
        if field.startswith(_DIGEST):
            # Seeds and lengths have parents of their own, so only two at one seed tell runs apart.
            of_a_seed = [labelled["length"], labelled["seed"]] if field == START else []
            # A plugin's code belongs to its variant; other content must agree for dense to be compared with.
            group = labelled["variant" if "plugin" in field else "setting"]
            given = texts[field].where(texts[field] != "")
            differs = known & (given.groupby([group, *of_a_seed]).transform("nunique") > 1) & given.notna()
            name = field.removeprefix(_DIGEST)
            short_text = texts[field].str[-8:] if field == START else texts[field].str[:8]  # a parent's id ends in one
            extra = (f" {name}=" + short_text).where(differs, "")
            labelled["variant"] = labelled["variant"] + extra
            if "plugin" not in field:
                labelled["setting"] = labelled["setting"] + extra
    labelled["setting"] = labelled["setting"].str.strip()


def _short_stacks(stacks: pd.Series[Any]) -> pd.Series[Any]:
    """`dense,dsa(top_k=64)*3` for the layers of hybrids: their kinds, and the settings in which two layers of a kind
    differ, in whichever stack."""
    read = [_layers(stack) for stack in stacks]
    said: dict[tuple[str, str], set[str]] = {}
    for kind, fields in (layer for stack in read for layer in stack):
        for path, text in fields.items():
            said.setdefault((kind, path), set()).add(text)
    names = []
    for stack in read:
        layers = []
        for kind, fields in stack:
            told = [
                f"{path.rpartition('.')[2]}={text}"
                for path, text in fields.items()
                if text and len(said[kind, path]) > 1
            ]
            layers.append(f"{kind}({','.join(told)})" if told else kind)
        groups = [(name, len(list(group))) for name, group in itertools.groupby(layers)]
        names.append(",".join(name if n == 1 else f"{name}*{n}" for name, n in groups))
    return pd.Series(names, index=stacks.index, dtype=object)


def _layers(stack: Any) -> list[tuple[str, dict[str, str]]]:
    """Kind and settings of each layer of a stack, which a table of many runs holds as JSON."""
    try:
        layers = json.loads(stack) if isinstance(stack, str) else stack
    except ValueError:  # a record may hold anything
        layers = None
    plain = [flatten(layer) for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    return [
        (str(layer.pop("kind", "")), {f"attention.{path}": _text(value) for path, value in layer.items()})
        for layer in plain
    ]


def _one_name_each(names: pd.Series[Any], digests: pd.Series[Any]) -> pd.Series[Any]:
    """One name for each digest, whatever its content was called in a run: one that is no path, else the shortest.

    Two digests may come by the same name, and are then told apart by themselves.
    """
    found: dict[str, str] = {}
    for name, digest in sorted(set(zip(names, digests, strict=True)), key=lambda pair: _plainness(pair[0])):
        found.setdefault(digest, name)
    return names.where(digests == "", digests.map(found))


def _plainness(name: str) -> tuple[bool, int, str]:
    return name.lstrip("'\"").startswith("path:"), len(name), name


def _name_on_rungs(labelled: pd.DataFrame, ignoring: Collection[str]) -> None:
    """Add variant and setting: the rung says what tells it from others, fields what tells its own runs apart."""
    for rung in rungs_of(labelled):
        there = labelled[RUNG] == rung
        mine = labelled[there].copy()
        _name(mine, ignoring)
        kind_and_rest = [variant.partition(" ") for variant in mine["variant"]]
        labelled.loc[there, "variant"] = [" ".join(filter(None, (kind, rung, rest))) for kind, _, rest in kind_and_rest]
        labelled.loc[there, "setting"] = [f"{rung} {setting}".strip() for setting in mine["setting"]]


def _reason(run: dict[Any, Any]) -> str:
    if run["status"] != "done":
        return run["status"] or "unknown status"
    for name in ("attention", "length", "seed"):
        if pd.isna(run[name]):
            return f"{name} is missing"
    return "no finite validation loss" if math.isnan(run["val_loss"]) else ""


def _keep_newest(labelled: pd.DataFrame, ignored: list[str]) -> None:
    """One run a seed counts: the others are named, not averaged twice."""
    keys = ["length", "variant", "seed", *ignored]
    ordered = [column for column in ("order", "updated") if column in labelled]
    done = labelled.loc[labelled["reason"] == "", ["run_id", *keys, *ordered]]
    if ordered:
        done = done.sort_values(ordered, kind="stable", na_position="first")
    older = done[done.duplicated(keys, keep="last")]
    if older.empty:
        return
    newest = done.groupby(keys, dropna=False)["run_id"].transform("last")
    for i in older.index:
        labelled.loc[i, "reason"] = f"superseded by {newest[i]}"


def _is_field(column: str) -> bool:
    section, dot, _ = column.partition(".")
    if dot:
        return section in _SECTIONS and column != "attention.kind"
    return section in _SECTIONS - {"attention", "model", "data", "train"}


def _short_names(fields: list[str]) -> dict[str, str]:
    """Field paths without their section, where that leaves them distinct."""
    short = {field: field.partition(".")[2] or field for field in fields}
    names = list(short.values())
    return {field: name if names.count(name) == 1 else field for field, name in short.items()}


def _texts(values: pd.Series[Any]) -> pd.Series[Any]:
    """`_text` of each value; a column of one kind of scalars has few different ones, and each is written once."""
    if values.dtype == object:
        return pd.Series([_text(value) for value in values], index=values.index, dtype=object)
    codes, different = pd.factorize(values)
    texts = np.array([*map(_text, different), ""], dtype=object)  # -1, the last, is a missing value
    return pd.Series(texts[codes], index=values.index, dtype=object)


def _text(value: Any) -> str:
    """A field's value as it stands in a name, distinct for distinct values; "" for null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple, dict)):
        return str(value).replace(" ", "")
    if value is None or pd.isna(value):
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if text.isprintable() and not re.search(r"[\s=]", text) else repr(text)
