"""Windows of synthetic tasks, of which the answers and where they stand in the window are known. Needs no torch.

A task is one file here, named after it, with the function `generate`; its settings are a class in
dsabench.spec.tasks, in a file of their own.

windows = TaskWindows(Recall(n_pairs=16), length=256)      # raises DataError when the window does not hold the task
batch = windows.batch(seed=42, step=0, batch_size=16, steps=1000)
batch.inputs, batch.tokens, batch.scored, batch.targets    # (B, L), (B, L + 1), (B, L), (B, L, M)
held_out = windows.evaluation("val", 131_072)
windows.decode(batch.inputs[0])                            # "k7 v3 . . k2 v9 . k7 . k2"
"""

from dsabench.data.tasks.curriculum import Level, full_level, level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, piece
from dsabench.data.tasks.task_windows import TaskWindows, fingerprint, generate

__all__ = [
    "Draws",
    "Level",
    "TaskBatch",
    "TaskWindows",
    "fingerprint",
    "full_level",
    "generate",
    "level",
    "piece",
]
