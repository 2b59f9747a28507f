"""Reasons of failed runs in words: what happened, and what would help."""

from __future__ import annotations

import faulthandler
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from dsabench.attention.faults import file_of, line_in, said
from dsabench.attention.plugins import plugin_digest
from dsabench.attention.registry import variant
from dsabench.engine.data_parallel.ranks import RankFailedError
from dsabench.engine.device import Execution, first_line
from dsabench.engine.loop import TrainingDiverged
from dsabench.spec.run import RunSpec

LOG = "log.txt in the run's folder"
DEATH = ".death.tmp"
"""A file in a run's folder while it is trained; the next writer of the run removes one that is left over."""
LOST = "the GPU takes no more work from this process since it failed"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    signs = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: ")
    is_told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return is_told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def is_lost(execution: Execution) -> bool:
    """Whether the device fails every call from now on, as a GPU does in a process that accessed memory illegally."""
    try:
        execution.synchronize()
    except RuntimeError:
        return True
    return False


def smaller(batch: int, micro_batch: int) -> int | None:
    """The largest micro-batch of at most half of the windows that divides the batch; None when it is one already."""
    return max((n for n in range(1, micro_batch // 2 + 1) if batch % n == 0), default=None)


def reason(spec: RunSpec, error: Exception, micro_batch: int) -> str:
    """The `error` of a failed run's record."""
    if isinstance(error, RankFailedError):
        return str(error)
    if isinstance(error, TrainingDiverged):
        return f"{error} ({LOG})"
    if is_out_of_memory(error):
        halve = "`sweep --retry-failed --on-oom accumulate` halves the windows at a time; " if micro_batch > 1 else ""
        return (
            f"out of memory with {micro_batch} of {spec.batch_size} windows at a time ({first_line(error)}); {halve}"
            f"model.d_model below {spec.model.d_model} or a length below {spec.length} needs less ({LOG})"
        )
    for kind in spec.attention.kinds:
        file = file_of(variant(kind)) if plugin_digest(kind) else None
        if file is not None and (line := line_in(error, file)) is not None:
            break
    else:
        return f"{said(error)} ({LOG})"
    return f"{file}:{line}: attention {kind} raised {said(error)}; mend it, and the same command trains it anew ({LOG})"


@contextmanager
def deaths(folder: Path) -> Iterator[None]:
    """While inside, a fault that kills the process (a segmentation fault) leaves a traceback in the run's folder."""
    path = folder / DEATH
    try:
        # Left alone where somebody else has enabled it: their file could not be restored afterwards.
        file = None if faulthandler.is_enabled() else path.open("wb")
    except OSError:  # the disk is full, say, which training will meet too
        file = None
    if file is None:
        yield
        return
    with file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            with suppress(OSError):
                path.unlink()


def death(folder: Path) -> str:
    """The traceback that `deaths` left in a run's folder; "" where there is none."""
    path = folder / DEATH
    if path.is_symlink() or not path.is_file():  # a store may be somebody else's
        return ""
    with suppress(OSError):  # a writer of the run has just removed it
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def of_death(how: str) -> str:
    """The reason of a run whose process died. how: the signal, exit code or fault."""
    return f"its process died: {how} ({LOG}); --retry-failed runs it again"


def log(error: BaseException) -> str:
    """The traceback of a failure, with the GPU's memory where that ran out."""
    if isinstance(error, RankFailedError):
        return error.log
    text = "".join(traceback.format_exception(error))
    if is_out_of_memory(error) and torch.cuda.is_available():
        text += f"\n{torch.cuda.memory_summary()}"
    return text
