"""Numbers of a selection beside their chance: the attention mass it keeps, where it looks, what it misses.

All over one window. S[t] is what query t selected, n[t] = |S[t]|, k the largest n[t] of the layer, p[t] the full
softmax attention (mean over heads). Means run over the rows R = {t >= k}, where there was a choice; without any
(k >= L) every number is None. The chance of a number is its exact expectation for random causal sets of the same sizes.

A set of keys that a query should have selected (nearest, first, top of the attention, a task's known targets) is a
mask (T, S): `share_kept` says how much of it was.

Legend: T query, S key, K selected slots, D distance t - s.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsabench.engine.chance import selection_chance_T

if TYPE_CHECKING:
    from dsabench.selection.capture import LayerSelection

FIRST = 4
"""Tokens at the start of the window that count as the first ones: attention sinks, where there are any."""

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

_ROWS = 256
"""Queries handled at a time, where a copy of all would cost memory."""

Mask = NDArray[np.bool_]
Numbers = dict[str, Any]


def selection_numbers(layers: Sequence[LayerSelection]) -> Numbers:
    """{"layers": layer_numbers of each, "mean": of their plain numbers, "layer_overlap": see layer_overlap}."""
    found = [layer_numbers(layer) for layer in layers]
    return {"layers": found, "mean": _means(found), "layer_overlap": layer_overlap(layers)}


def layer_numbers(layer: LayerSelection) -> Numbers:
    """The numbers of one layer, each with its `_chance` beside it where it has one.

    layer, k, queries      which layer; k; how many rows R has
    mass_recall            mean over R of sum over s in S[t] of p[t,s]; chance n / (t + 1)
    mass_recall_best       the same for the n[t] keys of most mass: no selection of that size holds more
    oracle_overlap         share of those keys that S[t] has; chance n / (t + 1)
    nearest_kept           share of the nearest n[t] keys, the query's own included, that S[t] has; chance n / (t + 1)
    first_kept             share of the first FIRST keys of the window that S[t] has; chance n / (t + 1)
    previous_kept          |S[t] & S[t-1]| / n[t] for t > k: how much of S[t] was selected one query before, too;
                           chance n[t-1] / (t + 1). A sliding window has (k - 1) / k
    attention_entropy      -sum_s p ln p, nats; _uniform: ln(t + 1), what even attention has
    score_entropy          that of softmax(I[t]) over S[t], nats; _uniform: ln n[t]. None without scores
    never_selected         keys of the window that no query of R selected; chance sum_s prod_(t in R, t >= s)
                           (1 - n[t] / (t + 1)). never_selected_first names the first 20 of them
    distance               see `distances`
    """
    k, length = layer.k, layer.length
    rows = np.arange(k, length)
    chance_T = selection_chance_T(layer.n_selected_T)
    chance = _mean(chance_T[rows])
    later = rows[rows > k]
    member_TS, n_T = layer.member_TS, layer.n_selected_T
    previous = (member_TS[later] & member_TS[later - 1]).sum(axis=1) / np.maximum(n_T[later], 1)
    never, never_chance = never_selected(member_TS, chance_T, rows)
    best_TS = oracle_TS(layer)
    return {
        "layer": layer.layer,
        "k": k,
        "queries": len(rows),
        "mass_recall": _mean(layer_recall_T(layer)[rows]),
        "mass_recall_chance": chance,
        "mass_recall_best": _mean(_mass_inside_T(layer, best_TS)[rows]),
        "oracle_overlap": share_kept(member_TS, best_TS, rows),
        "oracle_overlap_chance": chance,
        "nearest_kept": share_kept(member_TS, nearest_TS(n_T), rows),
        "nearest_kept_chance": chance,
        "first_kept": share_kept(member_TS, first_TS(length), rows),
        "first_kept_chance": chance,
        "previous_kept": _mean(previous),
        "previous_kept_chance": _mean(n_T[later - 1] / (later + 1)),
        "attention_entropy": _mean(_entropy_T(layer.mass_TS, rows)),
        "attention_entropy_uniform": _mean(np.log(rows + 1)),
        "score_entropy": _mean(score_entropy_T(layer)[rows]) if layer.scores_TS is not None else None,
        "score_entropy_uniform": _mean(np.log(np.maximum(n_T[rows], 1))) if layer.scores_TS is not None else None,
        "never_selected": len(never) if len(rows) else None,
        "never_selected_chance": never_chance,
        "never_selected_first": never[:20].tolist(),
        "distance": distances(layer, rows),
    }


def layer_recall_T(layer: LayerSelection) -> NDArray[np.float64]:
    """Attention mass inside each query's selection, in [0, 1]: `recall_BT` of engine/evaluation.py for one window."""
    recall_T: NDArray[np.float64] = layer.at_slots(layer.mass_TS).sum(axis=1, dtype=np.float64)
    return recall_T


def share_kept(member_TS: Mask, target_TS: Mask, rows: NDArray[np.int64]) -> float | None:
    """Mean over `rows` of |S[t] & target[t]| / |target[t]|; rows without a target do not count."""
    size_T = target_TS[rows].sum(axis=1)
    kept_T = (member_TS[rows] & target_TS[rows]).sum(axis=1)
    return _mean(kept_T[size_T > 0] / size_T[size_T > 0])


def oracle_TS(layer: LayerSelection) -> Mask:
    """The n[t] keys of most attention mass of each query, ties to the lowest key."""
    target_TS = np.zeros(layer.mass_TS.shape, bool)
    slot_S = np.arange(layer.length)
    for part in _parts(np.arange(layer.length)):
        order = np.argsort(-layer.mass_TS[part], axis=1, kind="stable")  # no mass after the query: those come last
        chosen = slot_S < layer.n_selected_T[part, None]
        block = np.zeros(order.shape, bool)
        np.put_along_axis(block, order, chosen, axis=1)
        target_TS[part] = block
    return target_TS


def nearest_TS(n_selected_T: NDArray[Any]) -> Mask:
    """The nearest n[t] keys of each query: t - n[t] + 1 to t."""
    query_T1, key_S = np.arange(len(n_selected_T))[:, None], np.arange(len(n_selected_T))
    nearest: Mask = (key_S <= query_T1) & (key_S > query_T1 - n_selected_T[:, None])
    return nearest


def first_TS(length: int) -> Mask:
    """The first FIRST keys of the window, those after the query left out."""
    return np.tri(length, dtype=bool) & (np.arange(length) < FIRST)


def missed_TS(layer: LayerSelection) -> Mask:
    """Keys that were not selected although full attention gives them more than an even share, p[t,s] > 1 / (t + 1)."""
    even_T1 = np.float32(1.0) / np.arange(1, layer.length + 1, dtype=np.float32)[:, None]
    missed: Mask = (layer.mass_TS > even_T1) & ~layer.member_TS & np.tri(layer.length, dtype=bool)
    return missed


def never_selected(
    member_TS: Mask, chance_T: NDArray[np.float64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], float | None]:
    """The keys that no query of `rows` selected, and how many random sets would leave out on average."""
    if not len(rows):
        return np.zeros(0, np.int64), None
    never = np.flatnonzero(~member_TS[rows].any(axis=0))
    left_out_T = np.ones(len(chance_T))
    left_out_T[rows] = 1.0 - chance_T[rows]
    # Key s is in the past of the queries t >= s alone.
    return never, float(np.cumprod(left_out_T[::-1]).sum())


def distances(layer: LayerSelection, rows: NDArray[np.int64]) -> Numbers | None:
    """How far selected keys lie behind their query, over all selected (t, s) with t in `rows`.

    quantiles             {q: the smallest distance that at least a share q of the selected keys does not exceed}
    quantiles_chance      the same for random causal sets
    histogram             bins 0, 1, 2-3, 4-7, ...: from, to, share of the selected keys, share_chance of random ones,
                          and share_attention, where the attention mass of the same queries lies
    """
    if not len(rows):
        return None
    length = layer.length
    selected_D, random_D, mass_D = np.zeros(length), np.zeros(length), np.zeros(length)
    for t, chance in zip(rows, selection_chance_T(layer.n_selected_T)[rows], strict=True):
        selected_D[: t + 1] += layer.member_TS[t, t::-1]
        mass_D[: t + 1] += layer.mass_TS[t, t::-1]
        random_D[: t + 1] += chance
    starts = [0, *(2**i for i in range(math.ceil(math.log2(length)) if length > 1 else 0))]
    ends = [*(start - 1 for start in starts[1:]), length - 1]
    shares = {
        "share": _shares(selected_D, starts),
        "share_chance": _shares(random_D, starts),
        "share_attention": _shares(mass_D, starts),
    }
    return {
        "quantiles": _quantiles(selected_D),
        "quantiles_chance": _quantiles(random_D),
        "histogram": [
            {"from": start, "to": end, **{name: values[i] for name, values in shares.items()}}
            for i, (start, end) in enumerate(zip(starts, ends, strict=True))
        ],
    }


def layer_overlap(layers: Sequence[LayerSelection]) -> list[Numbers]:
    """For each pair of layers a < b: overlap, the mean over the rows of both of |A & B| / min(|A|, |B|), beside its
    chance max(|A|, |B|) / (t + 1)."""
    found = []
    for a, b in itertools.combinations(layers, 2):
        rows = np.arange(max(a.k, b.k), a.length)
        small, large = (choose(a.n_selected_T[rows], b.n_selected_T[rows]) for choose in (np.minimum, np.maximum))
        both = (a.member_TS[rows] & b.member_TS[rows]).sum(axis=1)
        found.append(
            {
                "layers": [a.layer, b.layer],
                "overlap": _mean(both / np.maximum(small, 1)),
                "overlap_chance": _mean(large / (rows + 1)),
            }
        )
    return found


def score_entropy_T(layer: LayerSelection) -> NDArray[np.float64]:
    """-sum q ln q of q = softmax(I[t]) over S[t], nats, from the scores as they are."""
    assert layer.scores_TS is not None
    filled_TK = layer.selected_TK >= 0
    # A variant may force a key in or out with an infinite score: the largest float says the same without inf - inf.
    score_TK = np.nan_to_num(layer.at_slots(layer.scores_TS)).astype(np.float64)
    highest_T1 = np.where(filled_TK, score_TK, -np.finfo(np.float64).max).max(axis=1, keepdims=True)
    weight_TK = np.where(filled_TK, np.exp(np.minimum(score_TK - highest_T1, 0.0)), 0.0)
    total_T1 = weight_TK.sum(axis=1, keepdims=True)
    return _plogp(weight_TK / np.where(total_T1 > 0, total_T1, 1.0))


def _mass_inside_T(layer: LayerSelection, inside_TS: Mask) -> NDArray[np.float64]:
    inside_T: NDArray[np.float64] = np.where(inside_TS, layer.mass_TS, np.float32(0)).sum(axis=1, dtype=np.float64)
    return inside_T


def _entropy_T(p_TS: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    parts = [_plogp(p_TS[part].astype(np.float64)) for part in _parts(rows)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _plogp(p_TS: NDArray[np.float64]) -> NDArray[np.float64]:
    entropy_T: NDArray[np.float64] = -(p_TS * np.log(np.where(p_TS > 0, p_TS, 1.0))).sum(axis=1)
    return entropy_T


def _parts(rows: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    return (rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS))


def _shares(weight_D: NDArray[np.float64], starts: list[int]) -> list[float | None]:
    total = weight_D.sum()
    return [float(part) / total if total else None for part in np.add.reduceat(weight_D, starts)]


def _quantiles(weight_D: NDArray[np.float64]) -> dict[str, int | None]:
    up_to_D = np.cumsum(weight_D)
    if not up_to_D[-1]:
        return {str(q): None for q in QUANTILES}
    reached = {q: up_to_D >= q * up_to_D[-1] * (1 - 1e-12) for q in QUANTILES}
    return {str(q): int(np.argmax(here)) for q, here in reached.items()}


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None


def _means(found: Sequence[Numbers]) -> Numbers:
    """Means over layers of the entries that are a number in every layer."""
    if not found:
        return {}
    names = [name for name, value in found[0].items() if name != "layer" and not isinstance(value, (list, dict))]
    columns = {name: [numbers[name] for numbers in found] for name in names}
    return {
        name: None if any(value is None for value in column) else float(np.mean(column))
        for name, column in columns.items()
    }
