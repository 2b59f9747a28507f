"""The windows of a task at one length: training batches keyed by seed and step alone, fixed evaluation windows.

Legend: N windows, B batch, L inputs of a window, T tokens.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable

from dsabench.data.batch import Baseline, Batch, SplitName
from dsabench.data.tasks.curriculum import Level, full_level, level
from dsabench.data.tasks.draws import EVALUATION_KEY, Draws
from dsabench.data.tasks.task_batch import TaskBatch, piece
from dsabench.errors import DataError
from dsabench.spec.former_values import former_values
from dsabench.spec.task_settings import TaskSettings

FORMAT = 1
"""Raised when a change alters the windows that settings give: part of a run's identity."""

EVALUATION_TOKENS = 131_072
"""Tokens of an evaluation sample when no size is given, because a task has no end."""

_SECOND_KEY: dict[SplitName, int] = {"train": 0, "val": 1}


class TaskWindows:
    """Windows of one task and length. Raises DataError, saying what would fit, when a window does not hold the task.

    Training and validation share no window, because the number of possible windows is astronomical unless a setting
    asks very few things. Where single problems are few (`arithmetic`), validation has problems of its own.
    """

    def __init__(self, settings: TaskSettings, length: int) -> None:
        self.settings, self.length = settings, length
        self.notes: list[str] = []
        try:
            settings.check_length(length)
        except ValueError as error:
            raise DataError(str(error)) from None

    @property
    def vocab_size(self) -> int:
        """Ids that the model must embed."""
        return self.settings.vocab_size

    @property
    def fingerprint(self) -> dict[str, str]:
        """Digests of `corpus` (task, settings, FORMAT) and `tokenizer` (the alphabet), as of a text."""
        return fingerprint(self.settings)

    def level(self, step: int, steps: int) -> Level:
        """The difficulty of a training step of 0..steps-1."""
        return level(self.settings, self.length, step, steps)

    def batch(self, seed: int, step: int, batch_size: int, steps: int) -> TaskBatch:
        """The windows of training step 0..steps-1, the same for every attention."""
        assert 0 <= seed < 2**32 and 0 <= step < steps, "keys of training and evaluation must differ"
        return generate(self.settings, self.level(step, steps), self.length, batch_size, Draws(seed, step))

    def evaluation(self, split: SplitName, max_tokens: int | None = None) -> TaskBatch:
        """ceil(max_tokens / length) fixed windows at full difficulty, the same for every seed and attention.

        Those of `train` are drawn like training's after the curriculum, but are not among them: unless the task is
        memorised, both losses are equal but for sampling. A larger sample does not begin with a smaller one's windows.
        """
        windows = -(-(max_tokens or EVALUATION_TOKENS) // self.length)
        draws = Draws(EVALUATION_KEY, _SECOND_KEY[split])
        return generate(self.settings, full_level(self.settings, self.length), self.length, windows, draws, split)

    def baseline(self, batch: Batch) -> Baseline:
        """The task's floor: the same for all windows at full difficulty."""
        return Baseline(self.settings.floor.loss, self.settings.floor.accuracy, None)

    def pieces(self, tokens_T: Iterable[int]) -> list[str]:
        """Each id as a reader sees it; see `piece`."""
        return [piece(self.settings, int(token)) for token in tokens_T]

    def decode(self, tokens_T: Iterable[int]) -> str:
        """The pieces with spaces between them."""
        return " ".join(self.pieces(tokens_T))


def generate(
    settings: TaskSettings, at: Level, length: int, windows: int, draws: Draws, split: SplitName = "train"
) -> TaskBatch:
    """Windows of `length` inputs at a level that fits, from `generate` in the file that has the task's name.

    `split` matters only to a task that holds problems out for validation (arithmetic).
    """
    module = importlib.import_module(f"dsabench.data.tasks.{settings.name}")
    batch: TaskBatch = module.generate(settings, at, length, windows, draws, split)
    return batch


def fingerprint(settings: TaskSettings) -> dict[str, str]:
    """Digests of `corpus` and `tokenizer`; the curriculum is not part of either, nor are values that every run had
    before their field was there."""
    values, former = settings.model_dump(mode="json", exclude={"curriculum"}), list(former_values(settings))
    values = {name: value for name, value in values.items() if (name, value) not in former}
    return {
        "corpus": _digest(settings.name, FORMAT, values),
        "tokenizer": _digest([list(kind) for kind in settings.alphabet]),
    }


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
