"""The ranks that train one run together, seen by one of them: shares of a batch, sums, agreement.

    gradient of the global batch = mean over ranks of the gradients of their equal shares

Legend: B windows, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dsabench import shutdown
from dsabench.data import Batch

T = TypeVar("T")

BUCKET = 2**24
"""Numbers that are sent at once: enough to fill the links, 64 MiB of memory."""

_PATIENCE = timedelta(days=30)
"""How long a rank waits for another. An evaluation may be long, and leader.py finds out which rank has died."""


class LostRankError(Exception):
    """A collective operation failed: another rank is gone, most likely."""


class RankFailedError(Exception):
    """A rank ended before the run did. The message says which and why, and is the `error` of the run's record."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log
        """Tracebacks and the output of all ranks."""


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `size` processes, of which each trains on its share of every batch."""

    rank: int = 0
    size: int = 1

    def connect(self, device: torch.device) -> None:
        """Meet the other ranks, by torchrun's environment variables: NCCL for tensors on GPUs, gloo for all others."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)

    @property
    def capture_mode(self) -> str:
        """capture_error_mode of a CUDA graph. A thread of NCCL queries earlier collectives all the time; in the mode
        `global` that would spoil a capture in another thread."""
        return "global" if self.size == 1 else "thread_local"

    def windows(self, batch_size: int) -> int:
        """Windows of a rank's share of a batch."""
        return batch_size // self.size

    def share(self, batch: Batch) -> Batch:
        """This rank's windows: the rank-th of `size` equal runs of neighbours."""
        count = self.windows(len(batch.tokens))
        return batch if self.size == 1 else batch.rows(self.rank * count, (self.rank + 1) * count)

    # On the device, in every step

    def average_(self, gradients: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, which has the same bits on all of them.

        Not by DistributedDataParallel, whose hooks sit on parameters of a module's own forward: here gradients arise
        in bf16 copies, over several micro-batches, and for other parameters in each stage.
        """
        if self.size == 1:
            return
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with _asking():
                dist.all_reduce(flat)
            pieces = (flat / self.size).split([gradient.numel() for gradient in bucket])
            means = [piece.view_as(gradient) for piece, gradient in zip(pieces, bucket, strict=True)]
            torch._foreach_copy_(list(bucket), means)

    def mean(self, tensor: Tensor) -> Tensor:
        """Its mean over ranks; no gradient passes."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        with _asking():
            dist.all_reduce(total)
        return total / self.size

    def part_of_mean(self, loss: Tensor, scored_BT: Tensor | None) -> Tensor:
        """`loss`, a mean over this rank's scored targets, weighted so that its mean over ranks is the mean over all
        targets. Ranks differ in their number: of packed documents not every window has as many."""
        if self.size == 1 or scored_BT is None:
            return loss
        count = scored_BT.sum(dtype=torch.float32)
        return loss * (count / self.mean(count).clamp(min=1 / self.size))

    # On the host, between steps

    def same(self, value: T) -> T:
        """Rank 0's value, on all ranks. For what each rank would find differently, by its clock for example."""
        if self.size == 1:
            return value
        values = [value]
        with _asking():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def largest(self, *values: float) -> list[float]:
        """The largest of each over ranks."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        with _asking():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [float(value) for value in found]

    def first_of(self, value: str | None) -> str | None:
        """The value of the first rank that has one, with the rank's number; None where none has."""
        if self.size == 1:
            return value
        values: list[str | None] = [None] * self.size
        with _asking():
            dist.all_gather_object(values, value)
        found = [f"rank {rank}: {text}" for rank, text in enumerate(values) if text is not None]
        return found[0] if found else None

    def by_first(self, work: Callable[[], T]) -> T:
        """work() done by rank 0 alone; its value on all ranks. KeyboardInterrupt in it is raised on all of them."""
        if self.size == 1:
            return work()
        stopped, value = False, None
        if self.rank == 0:
            try:
                with shutdown.interruptible():
                    value = work()
            except KeyboardInterrupt:
                stopped = True
        stopped, value = self.same((stopped, value))
        if stopped:
            raise KeyboardInterrupt
        result: Any = value
        return result  # type: ignore[no-any-return]

    def check_equal(self, tensors: Iterable[Tensor]) -> None:
        """Raise RankFailedError on a rank whose tensors (of 4-byte numbers) do not have rank 0's bits.

        They differ only when something is broken, or when GPUs of two kinds round differently.
        """
        if self.size == 1:
            return
        sums = torch.stack([tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors])
        if sums.tolist() != self.same(sums.tolist()):
            raise RankFailedError(f"the parameters of rank {self.rank} are no longer those of rank 0")

    def stop_if_asked(self) -> None:
        """Raise KeyboardInterrupt on all ranks if rank 0 has been asked to stop."""
        if self.size > 1 and self.same(shutdown.asked()):
            raise KeyboardInterrupt


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists of about BUCKET numbers and of one dtype."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(one.numel() for one in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(str(error).splitlines()[0]) from error
