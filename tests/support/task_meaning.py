"""The meaning of tasks: answers that a reader finds in a window's tokens, without what the generator knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks import CommonWords, Compositional, Forgetting, Mqar, MultiNeedle, VariableTracking

Key = tuple[int, ...]


def kind(task: TaskSettings, token: int) -> str:
    """The name of the token's kind."""
    for name, count in task.alphabet:
        if token < count:
            return name
        token -= count
    raise AssertionError(token)


def answers_by_key(task: TaskSettings, seen: Sequence[int]) -> dict[Key, list[int]]:
    """What each key that stands in the window stands for, before the queries."""
    found: dict[Key, list[int]] = {}
    kinds = [kind(task, token) for token in seen]
    for t, token in enumerate(seen):
        if isinstance(task, Forgetting | Mqar) and kinds[t : t + 2] == ["k", "v"]:
            found[(token,)] = [seen[t + 1]]
        if isinstance(task, MultiNeedle) and kinds[t : t + 2] == ["k", "v"]:
            found.setdefault((token,), []).append(seen[t + 1])
        if isinstance(task, Compositional) and kinds[t : t + 3] == ["a", "b", "v"]:
            found[(token, seen[t + 1])] = [seen[t + 2]]
        if isinstance(task, VariableTracking) and kinds[t : t + 2] == ["x", "="]:
            right = seen[t + 2]
            found[(token,)] = [right] if kinds[t + 2] == "v" else found[(right,)]
    return found


def chain_ends(task: TaskSettings, seen: Sequence[int]) -> set[Key]:
    """Variables that no later statement passes on."""
    kinds = [kind(task, int(token)) for token in seen]
    left = [int(seen[t]) for t in range(len(seen)) if kinds[t : t + 2] == ["x", "="]]
    right = {int(seen[t + 2]) for t in range(len(seen)) if kinds[t : t + 2] == ["x", "="]}
    return {(token,) for token in left if token not in right}


def solved(task: TaskSettings, seen: Sequence[int], scored: Sequence[int]) -> list[int]:
    """The answer at each scored input, from what the model reads."""
    if isinstance(task, CommonWords):
        words = Counter(token for token in seen[: scored[0]] if kind(task, token) == "w")
        return [word for word, _ in words.most_common(task.n_common)]
    known = answers_by_key(task, seen[: scored[0] - (1 if isinstance(task, Compositional) else 0)])
    width = task.values_per_key if isinstance(task, MultiNeedle) else 1
    found = []
    for t in scored[::width]:
        key = (seen[t - 1], seen[t]) if isinstance(task, Compositional) else (seen[t],)
        found += known[key]
    return found
