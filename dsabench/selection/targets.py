"""A task's targets in one window, and the share of them that a selection holds.

Legend: T query, M listed positions of an answer, C targets that are listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsabench.engine.chance import selection_chance_T

if TYPE_CHECKING:
    from dsabench.selection.capture import LayerSelection

Numbers = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Questions:
    """The scored queries of a window, their targets and answers."""

    targets_TM: NDArray[np.int32]
    """Positions before query t that must be attended to for its answer; -1 where unused, all -1 where not scored."""

    answers: dict[int, str]
    """Scored query -> the right answer, the token that follows it; in ascending order."""

    model_answers: dict[int, str]
    """Scored query -> the token that the model finds most probable."""

    @property
    def queries(self) -> list[int]:
        """The scored queries, ascending."""
        return list(self.answers)

    def targets(self, query: int) -> list[int]:
        """The positions that `query` must attend to, ascending and each once; none when it is not scored."""
        return sorted({int(key) for key in self.targets_TM[query] if key >= 0})


def target_numbers(layer: LayerSelection, questions: Questions) -> Numbers:
    """target_recall, the share of all listed targets that their query selected; chance: mean over them of n / (t + 1).

    Of every scored query, those t < k included, as engine.selection_recall has it.
    """
    query_C, slot_C = np.nonzero(questions.targets_TM >= 0)
    found_C = layer.member_TS[query_C, questions.targets_TM[query_C, slot_C]]
    return {
        "target_recall": float(found_C.mean()),
        "target_recall_chance": float(selection_chance_T(layer.n_selected_T)[query_C].mean()),
    }


def with_targets(numbers: Numbers, layers: list[LayerSelection], questions: Questions) -> Numbers:
    """`selection_numbers` with `target_numbers` added to each layer and to their mean.

    target_recall_best and target_recall_best_layer are those of the layer that finds most, the last of equals.
    """
    added = [target_numbers(layer, questions) for layer in layers]
    best = max(range(len(added)), key=lambda i: (added[i]["target_recall"], i))
    mean = {name: float(np.mean([one[name] for one in added])) for name in added[0]}
    return {
        **numbers,
        "layers": [values | more for values, more in zip(numbers["layers"], added, strict=True)],
        "mean": numbers["mean"] | mean,
        "target_recall_best": added[best]["target_recall"],
        "target_recall_best_layer": layers[best].layer,
    }


def rank_of(layer: LayerSelection, query: int, key: int) -> int | None:
    """Where `key` stands among the selected keys of `query`, the highest score at 0; None for a variant without scores,
    and for a key that is not selected."""
    at = np.flatnonzero(layer.selected_TK[query] == key)
    return int(at[0]) if len(at) and layer.scores_TS is not None else None


def question_list(pieces: list[str], layers: list[LayerSelection], questions: Questions) -> list[Numbers]:
    """Every scored query with its answer and targets, and which layers select each, as plain values.

    A target's `layers` has of each layer whether it is `selected` and its `rank`, see `rank_of`.
    """
    return [
        {
            "query": query,
            "token": pieces[query],
            "answer": answer,
            "model_answer": questions.model_answers[query],
            "right": questions.model_answers[query] == answer,
            "targets": [
                {
                    "key": key,
                    "token": pieces[key],
                    "layers": [
                        {
                            "layer": layer.layer,
                            "selected": bool(layer.member_TS[query, key]),
                            "rank": rank_of(layer, query, key),
                        }
                        for layer in layers
                    ],
                }
                for key in questions.targets(query)
            ],
        }
        for query, answer in questions.answers.items()
    ]
