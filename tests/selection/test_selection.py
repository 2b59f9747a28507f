"""Each number against its definition written slowly, and against selections whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import attention, of_scores, oracle_layer, random_layer, window_layer

from dsabench.selection.capture import LayerSelection
from dsabench.selection.numbers import (
    FIRST,
    QUANTILES,
    first_TS,
    layer_numbers,
    layer_overlap,
    missed_TS,
    nearest_TS,
    oracle_TS,
    selection_numbers,
    share_kept,
)

RANDOM = st.tuples(st.integers(2, 14), st.integers(1, 14), st.integers(0, 10_000))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def sets_of(layer: LayerSelection) -> list[set[int]]:
    return [{int(s) for s in row if s >= 0} for row in layer.selected_TK]


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


@settings(deadline=None, max_examples=60)
@given(RANDOM)
def test_every_number_of_a_layer_is_its_definition(case: tuple[int, int, int]) -> None:
    length, k, seed = case
    k = min(k, length)
    layer = random_layer(length, k, seed)
    assert layer.scores_TS is not None
    numbers, sets, p = layer_numbers(layer), sets_of(layer), layer.mass_TS.astype(float)
    rows = range(k, length)
    assert numbers["queries"] == len(rows)
    if not rows:
        measured = {name: value for name, value in numbers.items() if name not in ("layer", "k", "queries")}
        assert set(map(str, measured.values())) <= {"None", "[]"}
        return
    best = {t: set(sorted(range(t + 1), key=lambda s: (-p[t, s], s))[:k]) for t in rows}
    chance = mean([k / (t + 1) for t in rows])
    later = [t for t in rows if t > k]
    weights = {t: [math.exp(layer.scores_TS[t, s]) for s in sets[t]] for t in rows}
    never = [s for s in range(length) if not any(s in sets[t] for t in rows)]
    wanted = {
        "mass_recall": mean([sum(p[t, s] for s in sets[t]) for t in rows]),
        "mass_recall_chance": chance,
        "mass_recall_best": mean([sum(p[t, s] for s in best[t]) for t in rows]),
        "oracle_overlap": mean([len(best[t] & sets[t]) / k for t in rows]),
        "oracle_overlap_chance": chance,
        "nearest_kept": mean([len(sets[t] & set(range(t - k + 1, t + 1))) / k for t in rows]),
        "first_kept": mean([len(sets[t] & set(range(FIRST))) / min(FIRST, t + 1) for t in rows]),
        "attention_entropy": mean([entropy(list(p[t])) for t in rows]),
        "attention_entropy_uniform": mean([math.log(t + 1) for t in rows]),
        "score_entropy": mean([entropy([w / sum(weights[t]) for w in weights[t]]) for t in rows]),
        "score_entropy_uniform": math.log(k),
        "never_selected": len(never),
        "never_selected_chance": sum(
            math.prod(1 - k / (t + 1) for t in rows if t >= s) for s in range(length)
        ),
    }  # fmt: skip
    for name, value in wanted.items():
        assert numbers[name] == pytest.approx(value, abs=1e-5), name
    assert numbers["never_selected_first"] == never[:20]
    if later:
        assert numbers["previous_kept"] == pytest.approx(mean([len(sets[t] & sets[t - 1]) / k for t in later]))
        assert numbers["previous_kept_chance"] == pytest.approx(mean([k / (t + 1) for t in later]))
    else:
        assert numbers["previous_kept"] is None


@settings(deadline=None, max_examples=60)
@given(RANDOM)
def test_distances_are_counted_pair_by_pair(case: tuple[int, int, int]) -> None:
    length, k, seed = case
    layer = random_layer(length, k, seed)
    distance, sets = layer_numbers(layer)["distance"], sets_of(layer)
    rows = range(min(k, length), length)
    if not rows:
        assert distance is None
        return
    far = sorted(t - s for t in rows for s in sets[t])
    # A random set of n keys holds each of t + 1 with the same probability.
    by_chance = [sum(k / (t + 1) for t in rows if t >= d) for d in range(length)]
    mass = [sum(float(layer.mass_TS[t, t - d]) for t in rows if t >= d) for d in range(length)]
    for q in QUANTILES:
        assert distance["quantiles"][str(q)] == far[math.ceil(q * len(far) - 1e-9) - 1]
        reached = [sum(by_chance[: d + 1]) >= q * sum(by_chance) - 1e-9 for d in range(length)]
        assert distance["quantiles_chance"][str(q)] == reached.index(True)
    bins = distance["histogram"]
    assert [one["from"] for one in bins] == [0, *(2**i for i in range(20) if 2**i < length)]
    assert [one["to"] for one in bins] == [one["from"] - 1 for one in bins[1:]] + [length - 1]
    for one in bins:
        inside = range(one["from"], one["to"] + 1)
        assert one["share"] == pytest.approx(sum(d in inside for d in far) / len(far))
        assert one["share_chance"] == pytest.approx(sum(by_chance[d] for d in inside) / sum(by_chance))
        assert one["share_attention"] == pytest.approx(sum(mass[d] for d in inside) / sum(mass), abs=1e-6)


def test_a_random_selection_is_at_chance_everywhere() -> None:
    found = [layer_numbers(random_layer(160, 40, seed)) for seed in range(0, 40, 2)]
    for name in ("mass_recall", "oracle_overlap", "nearest_kept", "first_kept", "previous_kept", "never_selected"):
        got, chance = (mean([one[ending] for one in found]) for ending in (name, f"{name}_chance"))
        assert got == pytest.approx(chance, rel=0.03 if name != "never_selected" else 0.2), name
    for one in found[0]["distance"]["histogram"]:
        assert one["share"] == pytest.approx(one["share_chance"], rel=0.3)


def test_the_oracle_overlaps_with_itself_and_no_selection_holds_more() -> None:
    numbers = layer_numbers(oracle_layer(64, 12))
    assert numbers["oracle_overlap"] == 1
    assert numbers["mass_recall"] == pytest.approx(numbers["mass_recall_best"])
    for seed in range(5):
        other = layer_numbers(random_layer(64, 12, seed))
        assert other["mass_recall"] < other["mass_recall_best"]


def test_a_window_keeps_the_nearest_and_all_but_one_of_the_query_before() -> None:
    numbers = layer_numbers(window_layer(64, 12))
    assert numbers["nearest_kept"] == 1
    assert numbers["previous_kept"] == pytest.approx(11 / 12)
    assert numbers["first_kept"] == pytest.approx(mean([max(0, FIRST - max(0, t - 11)) / FIRST for t in range(12, 64)]))
    assert numbers["distance"]["quantiles"]["0.9"] < 12
    assert sum(one["share"] for one in numbers["distance"]["histogram"] if one["from"] < 12) == pytest.approx(1)


def test_sinks_are_seen() -> None:
    scores = np.where(np.arange(32) < FIRST, 100.0, np.random.default_rng(0).random((32, 32))).astype(np.float32)
    numbers = layer_numbers(of_scores(scores, 8, attention(32)))
    assert numbers["first_kept"] == 1
    assert numbers["first_kept_chance"] < 0.6


def test_ties_of_the_attention_go_to_the_lowest_key() -> None:
    even = np.tri(8, dtype=np.float32) / np.arange(1, 9, dtype=np.float32)[:, None]
    layer = window_layer(8, 2)
    layer = LayerSelection(0, layer.selected_TK, even, layer.scores_TS)
    assert np.flatnonzero(oracle_TS(layer)[7]).tolist() == [0, 1]
    assert not missed_TS(layer).any()


@settings(deadline=None, max_examples=40)
@given(RANDOM)
def test_missed_keys_are_unselected_and_get_more_than_an_even_share(case: tuple[int, int, int]) -> None:
    length, k, seed = case
    layer = random_layer(length, k, seed)
    missed, sets = missed_TS(layer), sets_of(layer)
    for t in range(length):
        for s in range(length):
            expected = s <= t and s not in sets[t] and layer.mass_TS[t, s] > np.float32(1) / np.float32(t + 1)
            assert missed[t, s] == expected


@settings(deadline=None, max_examples=40)
@given(RANDOM, st.integers(1, 14))
def test_layers_overlap_as_counted_even_with_different_k(case: tuple[int, int, int], other: int) -> None:
    length, k, seed = case
    a, b = random_layer(length, min(k, length), seed, 0), random_layer(length, min(other, length), seed + 7, 3)
    (pair,) = layer_overlap([a, b])
    rows = range(max(a.k, b.k), length)
    assert pair["layers"] == [0, 3]
    if not rows:
        assert pair["overlap"] is None
        return
    small, large = min(a.k, b.k), max(a.k, b.k)
    both = [len(x & y) for x, y in zip(sets_of(a), sets_of(b), strict=True)]
    assert pair["overlap"] == pytest.approx(mean([both[t] / small for t in rows]))
    assert pair["overlap_chance"] == pytest.approx(mean([large / (t + 1) for t in rows]))
    assert layer_overlap([a, a])[0]["overlap"] in (None, 1.0)


def test_targets_of_any_kind_are_judged_by_the_same_share() -> None:
    layer = window_layer(10, 3)
    target = np.zeros((10, 10), bool)
    target[5, [0, 5]] = target[8, 7] = True
    rows = np.arange(10)
    assert share_kept(layer.member_TS, target, rows) == pytest.approx((0.5 + 1) / 2)
    assert share_kept(layer.member_TS, np.zeros((10, 10), bool), rows) is None
    assert nearest_TS(np.array([1, 2, 2]))[2].tolist() == [False, True, True]
    assert first_TS(6)[1].tolist() == [True, True, False, False, False, False]


def test_means_are_over_layers_and_leave_out_what_one_layer_lacks() -> None:
    scored, plain = random_layer(30, 6), random_layer(30, 6, 3, 1)
    plain = LayerSelection(1, plain.selected_TK, plain.mass_TS, None)
    numbers = selection_numbers([scored, plain])
    a, b = numbers["layers"]
    assert numbers["mean"]["mass_recall"] == pytest.approx((a["mass_recall"] + b["mass_recall"]) / 2)
    assert (a["score_entropy"] is None, b["score_entropy"], numbers["mean"]["score_entropy"]) == (False, None, None)
    assert "layer" not in numbers["mean"]
    assert len(numbers["layer_overlap"]) == 1


def test_a_variant_that_selects_fewer_at_times_has_the_chance_of_what_it_selected() -> None:
    layer = random_layer(20, 6)
    thin = layer.selected_TK.copy()
    thin[10:, 3:] = -1
    numbers = layer_numbers(LayerSelection(0, thin, layer.mass_TS, layer.scores_TS))
    assert numbers["k"] == 6
    n = {t: 6 if t < 10 else 3 for t in range(6, 20)}
    assert numbers["mass_recall_chance"] == pytest.approx(mean([n[t] / (t + 1) for t in n]))
    nothing = LayerSelection(0, np.full((5, 2), -1, np.int32), attention(5), None)
    assert layer_numbers(nothing)["mass_recall"] == 0


def test_scores_without_bound_do_no_harm() -> None:
    layer = random_layer(12, 4)
    assert layer.scores_TS is not None
    scores = layer.scores_TS.copy()
    scores[np.arange(12), layer.selected_TK[:, 0]] = np.inf
    scores[11, layer.selected_TK[11, 3]] = -np.inf
    numbers = layer_numbers(LayerSelection(0, layer.selected_TK, layer.mass_TS, scores))
    assert numbers["score_entropy"] == 0
