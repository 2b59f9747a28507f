"""Selections made by hand: random, a window, the oracle; for tests of their numbers and pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsabench.selection.capture import LayerSelection, ranked
from dsabench.selection.stored_run import Inspection
from dsabench.selection.targets import Questions
from dsabench.spec.run import validate
from dsabench.store import RunRecord


def attention(length: int, seed: int = 0, sharpness: float = 2.0) -> NDArray[np.float32]:
    """(T, S) probabilities of a causal softmax of random scores."""
    scores = sharpness * np.random.default_rng(seed).standard_normal((length, length))
    weight = np.where(np.tri(length, dtype=bool), np.exp(scores), 0)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def of_scores(scores_TS: NDArray[np.float32], k: int, mass_TS: NDArray[np.float32], layer: int = 0) -> LayerSelection:
    """The k keys of highest score of each query."""
    length = len(scores_TS)
    order = np.argsort(np.where(np.tri(length, dtype=bool), -scores_TS, np.inf), axis=1, kind="stable")[:, :k]
    return LayerSelection(layer, ranked(order, scores_TS), mass_TS, scores_TS)


def random_layer(length: int, k: int, seed: int = 0, layer: int = 0) -> LayerSelection:
    scores_TS = np.random.default_rng(seed + 1).standard_normal((length, length)).astype(np.float32)
    return of_scores(scores_TS, k, attention(length, seed), layer)


def window_layer(length: int, k: int, seed: int = 0) -> LayerSelection:
    nearest_TS = np.tile(np.arange(length, dtype=np.float32), (length, 1))
    return of_scores(nearest_TS, k, attention(length, seed))


def oracle_layer(length: int, k: int, seed: int = 0) -> LayerSelection:
    mass_TS = attention(length, seed)
    return of_scores(mass_TS, k, mass_TS)


def inspection(
    layers: list[LayerSelection],
    pieces: list[str] | None = None,
    source: str = "a text",
    notes: tuple[str, ...] = (),
    questions: Questions | None = None,
) -> Inspection:
    length = layers[0].length
    spec = validate({"length": max(2, length), "attention": {"kind": "dsa"}})
    record = RunRecord(run_id=f"dsa-L{length}-s1-00000000", status="done", spec=spec.model_dump(mode="json"))
    separator = "" if questions is None else " "
    words = pieces or [f"{' ' if questions is None else ''}w{i}" for i in range(length)]
    return Inspection(record, spec, 10, source, words, layers, list(notes), separator, questions)


def asking(length: int, targets: dict[int, list[int]], wrong: tuple[int, ...] = ()) -> Questions:
    """Queries and their targets; answers are a<query>, and the model's the same but for the `wrong` ones."""
    targets_TM = np.full((length, max(len(keys) for keys in targets.values())), -1, np.int32)
    for query, keys in targets.items():
        targets_TM[query, : len(keys)] = keys
    answers = {query: f"a{query}" for query in sorted(targets)}
    return Questions(targets_TM, answers, {query: "no" if query in wrong else a for query, a in answers.items()})
