"""Task windows: causal targets, unique keys, paired and disjoint streams, a curriculum that only ever grows."""

from __future__ import annotations

import hashlib
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_answers import answers_from_targets
from task_tools import settings_of

from dsabench.data.tasks import TaskBatch, TaskWindows, piece
from dsabench.spec.tasks import TASKS

STEPS = 100
SEEDS = st.integers(0, 2**32 - 1)
relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def _values(draw: st.DrawFn, name: str, length: int) -> dict[str, int | None]:
    tokens = length + 1

    def upto(most: int, least: int = 1) -> int:
        return draw(st.integers(least, max(least, most)))

    if name == "recall":
        n = upto(min(200, tokens // 4))
        return {
            "n_pairs": n,
            "n_queries": draw(st.none() | st.integers(1, n)),
            "n_keys": n + upto(50, 0),
            "n_values": upto(50, 2),
        }
    if name == "induction":
        n = upto(min(300, tokens // 2), 2)
        return {"n_copied": n, "n_symbols": n + upto(50)}
    if name == "needle":
        words = upto(4)
        n = upto(min(50, tokens // (3 + 2 * words)))
        return {"n_needles": n, "n_queries": upto(n), "n_keys": n + upto(9, 0), "value_length": words, "n_words": 9}
    if name == "selective_copy":
        return {"n_copied": upto(min(300, length // 2)), "n_symbols": upto(50, 2)}
    if name == "forgetting":
        n = upto(min(200, tokens // 6))
        queries = draw(st.none() | st.integers(1, n))
        return {"n_pairs": n, "n_updates": upto(n), "n_queries": queries, "n_keys": n + upto(50, 0), "n_values": 9}
    if name == "mqar":
        n = upto(min(200, (tokens - 1) // 4))
        return {"n_pairs": n, "n_keys": n + upto(50, 0), "n_values": n + upto(50, 0), "power": draw(st.floats(0, 1))}
    if name == "compositional":
        side = upto(min(20, math.isqrt(tokens // 6)), 2)
        return {"n_side": side, "n_parts": side + upto(9, 0), "n_values": upto(50, 2)}
    if name == "multi_needle":
        m = upto(3)
        n = upto(min(40, tokens // (3 * m + 2)))
        return {"n_needles": n, "n_queries": upto(n), "values_per_key": m, "n_keys": n + 3, "n_values": n * m + upto(9)}
    if name == "variable_tracking":
        hops = upto(3, 0)
        n = upto(min(40, tokens // (3 * hops + 6)))
        size = {"n_chains": n, "n_queries": upto(n), "n_hops": hops}
        return {**size, "n_variables": n * (hops + 1) + upto(9, 0), "n_values": upto(50, 2)}
    if name == "common_words":
        common = upto(2)
        n = upto(min(300, tokens - 3 * common - 3))
        return {"n_rare": n, "n_common": common, "common_count": 2, "n_words": n + common + upto(9, 0)}
    return {"n_digits": upto(min(12, (length - 3) // 3), 2)}


@st.composite
def cases(draw: st.DrawFn) -> TaskWindows:
    """Any task at any length that holds it, with or without a curriculum."""
    name = draw(st.sampled_from(sorted(TASKS)))
    length = draw(st.integers(16, 96) | st.integers(97, 4096) | st.just(4096))
    if name == "compositional":
        length = max(length, 24)  # what two parts a side take
    values: dict[str, Any] = _values(draw, name, length)
    if "answers" in TASKS[name].model_fields:
        values["answers"] = draw(st.sampled_from(["hidden", "shown"]))
    if "n_fillers" in TASKS[name].model_fields:
        values["n_fillers"] = draw(st.integers(1, 5))
    full = settings_of(name, {**values, "curriculum": None})
    curriculum: dict[str, Any] | None = None
    if draw(st.booleans()):
        start = draw(st.integers(full.least, full.size))
        span = draw(st.none() | st.integers(max(1, full.tokens_needed(start) - 1), length))
        curriculum = {"share": draw(st.floats(0.01, 1)), "start": start, "start_span": span}
        curriculum["growth"] = draw(st.sampled_from(["doubling", "linear"]))
    return TaskWindows(settings_of(name, {**values, "curriculum": curriculum}), length)


def both(windows: TaskWindows, seed: int, step: int) -> list[TaskBatch]:
    return [windows.batch(seed, step, 3, STEPS), windows.evaluation("val", 3 * windows.length)]


def kind(windows: TaskWindows, name: str, tokens: np.ndarray) -> np.ndarray:
    """Which tokens are of a kind of the alphabet."""
    first = 0
    for other, count in windows.settings.alphabet:
        if other == name:
            return (tokens >= first) & (tokens < first + count)
        first += count
    raise AssertionError(name)


@relaxed
@given(cases(), SEEDS, st.integers(0, STEPS - 1))
def test_targets_are_causal_and_only_answers_have_them(windows: TaskWindows, seed: int, step: int) -> None:
    for batch in both(windows, seed, step):
        length, width = windows.length, windows.settings.width
        assert batch.tokens.shape == (3, length + 1) and batch.tokens.dtype == np.int32
        assert batch.scored.shape == (3, length) and batch.scored.dtype == np.bool_
        assert batch.targets.shape == (3, length, width) and batch.targets.dtype == np.int32
        assert batch.tokens.min() >= 0 and batch.tokens.max() < windows.vocab_size
        assert (batch.targets < np.arange(length)[:, None]).all(), "a target lies before its query"
        assert ((batch.targets >= 0).any(-1) == batch.scored).all()
        assert (batch.targets[~batch.scored] == -1).all() and batch.targets.min() >= -1
        for listed in batch.targets[batch.scored]:
            assert len(set(listed[listed >= 0])) == (listed >= 0).sum(), "each once"
        counts = batch.scored.sum(1)
        assert (counts == counts[0]).all() and counts[0] > 0


@relaxed
@given(cases(), SEEDS, st.integers(0, STEPS - 1))
def test_targets_alone_suffice_for_every_answer(windows: TaskWindows, seed: int, step: int) -> None:
    for batch in both(windows, seed, step):
        answer_BL = answers_from_targets(windows.settings, batch)
        assert (answer_BL[batch.scored] == batch.tokens[:, 1:][batch.scored]).all()
        assert (answer_BL[~batch.scored] == -1).all()


@relaxed
@given(cases(), SEEDS, st.integers(0, STEPS - 1))
def test_hidden_answers_are_covered_and_nothing_else_is(windows: TaskWindows, seed: int, step: int) -> None:
    hidden = windows.settings.answer_cover is not None
    for batch in both(windows, seed, step):
        covered = np.zeros_like(batch.scored)
        covered[:, 1:] = batch.scored[:, :-1] & hidden
        assert batch.inputs.shape == batch.scored.shape and batch.inputs.dtype == np.int32
        assert (batch.inputs[~covered] == batch.tokens[:, :-1][~covered]).all()
        assert (np.unique(batch.inputs[covered]) == windows.settings.answer_cover).all()
        part = batch.rows(1, 3)
        assert (part.inputs == batch.inputs[1:3]).all(), "a rank's share is covered too"


@relaxed
@given(cases(), SEEDS, st.integers(0, STEPS - 1))
def test_padding_ends_the_window_and_is_never_scored(windows: TaskWindows, seed: int, step: int) -> None:
    for batch in both(windows, seed, step):
        pad_BT = batch.tokens == 0
        assert (np.diff(pad_BT.astype(int), axis=1) >= 0).all(), "after padding only padding"
        assert not (batch.scored & (pad_BT[:, :-1] | pad_BT[:, 1:])).any()
    span = windows.level(step, STEPS).span
    assert (windows.batch(seed, step, 3, STEPS).tokens[:, span + 1 :] == 0).all()
    if windows.settings.name != "arithmetic":  # there, what holds no further problem is padding too
        assert not pad_BT.any(), "at full difficulty the whole window is used"
        assert (windows.batch(seed, step, 3, STEPS).tokens[:, : span + 1] != 0).all()


@relaxed
@given(cases(), SEEDS, st.integers(0, STEPS - 1))
def test_no_answer_stands_before_its_target(windows: TaskWindows, seed: int, step: int) -> None:
    """What the query asks for is found at one place alone: right after the only earlier token like it."""
    for batch in both(windows, seed, step):
        for tokens_T, scored_L, targets_L in zip(batch.tokens, batch.scored, batch.targets[..., 0], strict=True):
            queries = np.flatnonzero(scored_L)
            if windows.settings.name in ("recall", "induction", "needle"):
                asks = queries[kind(windows, "s" if windows.settings.name == "induction" else "k", tokens_T[queries])]
                assert len(asks) == len(queries) // getattr(windows.settings, "value_length", 1)
                for t in asks:
                    assert np.flatnonzero(tokens_T[:t] == tokens_T[t]).tolist() == [targets_L[t] - 1]
            elif windows.settings.name == "selective_copy":
                symbols = np.flatnonzero(kind(windows, "s", tokens_T[: queries[0]]))
                assert symbols.tolist() == targets_L[queries].tolist(), "the i-th answer is the i-th symbol"


@relaxed
@given(cases(), SEEDS, st.integers(0, STEPS - 1))
def test_keys_are_unique(windows: TaskWindows, seed: int, step: int) -> None:
    if windows.settings.name not in ("recall", "needle"):
        return
    for batch in both(windows, seed, step):
        for tokens_T, scored_L in zip(batch.tokens, batch.scored, strict=True):
            is_key = kind(windows, "k", tokens_T)
            asked = tokens_T[:-1][is_key[:-1] & scored_L]
            stored = tokens_T[:-1][is_key[:-1] & ~scored_L]
            assert len(set(stored)) == len(stored) and len(set(asked)) == len(asked) and set(asked) <= set(stored)


@relaxed
@given(cases(), SEEDS, st.integers(0, STEPS - 2))
def test_batches_are_keyed_by_seed_and_step_alone(windows: TaskWindows, seed: int, step: int) -> None:
    again = TaskWindows(windows.settings, windows.length)
    again.batch(seed + 1 if seed < 2**32 - 1 else 0, 7, 2, STEPS)  # what was drawn before does not matter
    one, other = windows.batch(seed, step, 4, STEPS), again.batch(seed, step, 4, STEPS)
    for name in ("tokens", "scored", "targets"):
        assert (getattr(one, name) == getattr(other, name)).all()


def test_streams_are_disjoint() -> None:
    """Training by seed and step, the training sample and validation: no window stands in two of them."""
    for name in TASKS:
        windows = TaskWindows(settings_of(name, {"curriculum": None}), 256)
        # As many windows as a batch has: of equal keys they would be the same ones.
        seen = [row.tobytes() for split in SPLITS for row in windows.evaluation(split, 16 * 256).tokens]
        for seed in (0, 1, 2**32 - 1):
            for step in (0, 1, 99):
                seen += [row.tobytes() for row in windows.batch(seed, step, 16, STEPS).tokens]
        assert len(set(seen)) == len(seen), name


def evaluated(windows: TaskWindows, split: Any) -> TaskBatch:
    return windows.evaluation(split, 600 * windows.length)


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_is_fixed_and_at_full_difficulty(name: str) -> None:
    windows = TaskWindows(settings_of(name), 256)
    flat = TaskWindows(settings_of(name, {"curriculum": None}), 256)
    assert windows.evaluation("val", 1000).tokens.shape == (4, 257), "ceil(1000 / 256) windows"
    assert (windows.evaluation("val", 9000).tokens == flat.evaluation("val", 9000).tokens).all()
    assert windows.batch(1, 99, 8, STEPS).scored.sum() == flat.batch(1, 0, 8, STEPS).scored.sum(), "full at the end"
    assert (windows.batch(1, 99, 8, STEPS).tokens == flat.batch(1, 99, 8, STEPS).tokens).all()
    with pytest.raises(AssertionError, match="keys"):
        windows.batch(2**32, 0, 1, 1)


def test_no_addition_problem_is_in_both_splits() -> None:
    windows = TaskWindows(settings_of("arithmetic", {"n_digits": 2, "curriculum": None}), 256)

    def problems(batch: TaskBatch) -> set[bytes]:
        rows = batch.tokens[:, : 257 // 10 * 10].reshape(-1, 10)
        return {row.tobytes() for row in rows}

    held_out, train_sample = (problems(evaluated(windows, split)) for split in ("val", "train"))
    trained = set().union(*(problems(windows.batch(0, step, 64, STEPS)) for step in range(STEPS)))
    assert len(trained) + len(held_out) == 10**4, "all of them, on one side or the other"
    assert not held_out & (trained | train_sample)
    assert 1100 < len(held_out) < 1400, "an eighth of all"


@relaxed
@given(cases())
def test_curriculum_only_grows_and_ends_at_full_difficulty(windows: TaskWindows) -> None:
    chosen, full = windows.settings.curriculum, windows.settings.size
    for steps in (1, 2, 3, STEPS, 1017):
        levels = [windows.level(step, steps) for step in range(steps)]
        sizes, spans = [at.size for at in levels], [at.span for at in levels]
        assert (np.diff(sizes) >= 0).all() and (np.diff(spans) >= 0).all()
        assert (sizes[-1], spans[-1]) == (full, windows.length)
        assert all(windows.settings.tokens_needed(at.size) <= at.span + 1 for at in levels)
        if chosen is None:
            assert (sizes[0], spans[0]) == (full, windows.length)
        elif steps > 1:
            assert sizes[0] == chosen.start and spans[0] == (chosen.start_span or spans[0])
            done = int(np.ceil(chosen.share * steps))
            assert all((at.size, at.span) == (full, windows.length) for at in levels[done:])
            if chosen.growth == "doubling":
                assert all(size == full or size % chosen.start == 0 for size in sizes)


def test_default_curriculum_in_figures() -> None:
    windows = TaskWindows(settings_of("recall"), 256)
    grown = sorted({(at.size, at.span) for at in (windows.level(step, 1000) for step in range(1000))})
    assert grown == [(2, 32), (4, 64), (8, 128), (16, 256)]
    assert [windows.level(step, 1000).size for step in (0, 166, 167, 333, 334, 499, 500)] == [2, 2, 4, 4, 8, 8, 16]
    tight = {"n_queries": 8, "curriculum": {"growth": "linear", "start": 3, "start_span": 7}}
    windows = TaskWindows(settings_of("recall", tight), 47)
    assert min(at.span for at in (windows.level(s, 1000) for s in range(500)) if at.size == 4) == 11, "what 4 take"
    linear = TaskWindows(settings_of("recall", {"curriculum": {"growth": "linear", "start": 8}}), 256)
    assert [(linear.level(step, 1000).size, linear.level(step, 1000).span) for step in (0, 250)] == [
        (8, 128),
        (12, 192),
    ]


@pytest.mark.parametrize("name", TASKS)
def test_every_id_has_a_piece_of_its_own(name: str) -> None:
    task = settings_of(name)
    found = [piece(task, token) for token in range(task.vocab_size)]
    assert len(set(found)) == task.vocab_size and all(text.isascii() and " " not in text for text in found)
    windows = TaskWindows(task, 128)
    tokens_T = windows.evaluation("val", 128).tokens[0]
    assert windows.decode(tokens_T).split(" ") == windows.pieces(tokens_T) == [found[token] for token in tokens_T]


def test_pieces_read_as_documented() -> None:
    windows = TaskWindows(settings_of("arithmetic", {"n_digits": 2, "curriculum": None}), 9)
    text = "".join(windows.pieces(windows.evaluation("val", 9).tokens[0]))
    a, b, total = text[0:2], text[3:5], text[6:9]
    assert text[2] + text[5] + text[9] == "+=;" and int(a[::-1]) + int(b[::-1]) == int(total[::-1])


@pytest.mark.parametrize("name", TASKS)
def test_a_large_batch_is_fast(name: str) -> None:
    windows = TaskWindows(settings_of(name, {"curriculum": None}), 4096)
    windows.batch(0, 0, 2, 1)
    seconds = []
    for seed in range(5):
        start = time.perf_counter()
        windows.batch(seed, 0, 64, 1)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05, "64 windows of 4096 tokens"


SPLITS: tuple[Any, ...] = ("train", "val")

FROZEN = {
    "recall": "8987626237c9426e",
    "induction": "4291a1170ef15578",
    "needle": "02f2930a47d223c0",
    "selective_copy": "1453c5dd19abe23e",
    "arithmetic": "edbbd05ab44f9c79",
    "forgetting": "6f207483547aa2b2",
    "compositional": "78c01243d6d9bc33",
    "multi_needle": "bac913aea579999d",
    "variable_tracking": "6ce388da0d45e416",
    "common_words": "2daba155b049d94c",
    "mqar": "65bfa683c77a528d",
}


@pytest.mark.parametrize("name", TASKS)
def test_windows_stay_what_they_were(name: str) -> None:
    """Other windows under the same run id would make old and new runs look paired: then raise tasks.windows.FORMAT."""
    windows = TaskWindows(settings_of(name), 96)
    batches = [windows.batch(42, step, 4, 10) for step in range(10)] + [windows.evaluation(s, 999) for s in SPLITS]
    content = b"".join(batch.tokens.astype("<i4").tobytes() + batch.scored.tobytes() for batch in batches)
    assert hashlib.sha256(content).hexdigest()[:16] == FROZEN[name]
