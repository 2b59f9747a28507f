"""Token files too large to be read at each opening, checked block by block.

The rule: a file is cut into blocks of 4096 bytes. Whatever reads ids has first compared each block that it touches
with the CRC-32 of that block, once in a process and an opening. The table of the CRCs is part of arrays.npz, which is
compared with its digest at each opening.

The bound: of a block, damage that lies within 32 neighbouring bits (so every single bit) is always noticed, any other
but for one case in 2^32. What slips through: damage that comes after a block's first use, where the system drops
the block from memory and reads it from the disk again. Blocks that nothing reads are not looked at.

CRC-32, not a cryptographic digest, because it guards against accidents of disk and memory, costs 1 to 2 microseconds a
block, and whoever could forge a block could write its digest too. Small blocks, because a batch touches few places: 16
windows of 257 ids lie in about 18 blocks.

Legend: K blocks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from dsabench.errors import DataError

BLOCK_BYTES = 2**12
"""Size of a block; the last one of a file may be smaller. Part of the format: it cannot change under stored tables."""


def crc_of_blocks(tokens: NDArray[Any]) -> NDArray[np.uint32]:
    """(K,) CRC-32 of each block of an array."""
    data = tokens.view(np.uint8).data  # a view of the mapping: nothing is copied
    crcs = (zlib.crc32(data[first : first + BLOCK_BYTES]) for first in range(0, len(data), BLOCK_BYTES))
    return np.fromiter(crcs, np.uint32, -(-len(data) // BLOCK_BYTES))


class CheckedTokens(NDArrayOperatorsMixin):
    """The mapped ids of a token file, one-dimensional: tokens[i], tokens[a:b], tokens[array of places], len, and
    functions of NumPy, which read all of it. Raises DataError where a block is damaged and cannot be mended."""

    ndim = 1

    def __init__(
        self, mapped: NDArray[Any], crc_K: NDArray[np.uint32], mend: Callable[[], CheckedTokens], name: str
    ) -> None:
        """mend: makes the file anew, or finds that another process has done so; called when a block is damaged, and
        nothing of it is used."""
        self.crc_K = np.ascontiguousarray(crc_K, np.uint32)
        self._mend, self._name = mend, name
        self.dtype = mapped.dtype
        self._shift = (BLOCK_BYTES // mapped.dtype.itemsize).bit_length() - 1
        self._map(mapped)

    def _map(self, mapped: NDArray[Any]) -> None:
        self._mapped = np.asarray(mapped)  # without np.memmap's own work at each access
        self._bytes = self._mapped.view(np.uint8).data
        self._checked_K = np.zeros(len(self.crc_K), bool)
        self._left = len(self.crc_K)

    def __len__(self) -> int:
        return len(self._mapped)

    @property
    def shape(self) -> tuple[int]:
        """(ids,)."""
        return self._mapped.shape

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def __getitem__(self, where: Any) -> Any:
        if self._left:
            self._check(where)
        return self._mapped[where]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self[:], dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*(self[:] if one is self else one for one in inputs), **options)

    def is_whole(self) -> bool:
        """Whether every block agrees with its CRC."""
        return bool(self._crcs(range(len(self.crc_K))) == self.crc_K.tolist())

    def _check(self, where: Any) -> None:
        """Compare the blocks of these places that were not used before."""
        if isinstance(where, slice):
            places = range(len(self))[where]
            first, last = (min(places[0], places[-1]), max(places[0], places[-1])) if places else (0, -1)
            blocks = np.arange(first >> self._shift, (last >> self._shift) + 1)
        else:
            places_N = np.asarray(where)
            if places_N.dtype.kind not in "iu" or (places_N.size and places_N.min() < 0):
                places_N = np.arange(len(self))[where]  # a mask, or counted from the end
            blocks = (places_N >> self._shift).ravel()
        # Places come in runs, so neighbours tell nearly all repetitions; sorting would take longer than the CRCs.
        fresh = blocks[~self._checked_K[blocks]]
        if not len(fresh):
            return
        some = list(dict.fromkeys([*fresh[np.flatnonzero(fresh[1:] != fresh[:-1])].tolist(), int(fresh[-1])]))
        for block, crc, right in zip(some, self._crcs(some), self.crc_K[some].tolist(), strict=True):
            if crc != right:
                self._mended(block)
                return self._check(where)  # of the new file nothing was looked at so far
        self._checked_K[some] = True
        self._left -= len(some)

    def _crcs(self, blocks: Iterable[int]) -> list[int]:
        data, size = self._bytes, BLOCK_BYTES
        return [zlib.crc32(data[block * size : (block + 1) * size]) for block in blocks]

    def _mended(self, block: int) -> None:
        """Go on with a file that was made anew."""
        other = self._mend()
        if not np.array_equal(other.crc_K, self.crc_K):
            raise DataError(
                f"{self._name}: block {block} of {len(self.crc_K)} is damaged, and the text encoded anew has other "
                "tokens than before (perhaps by another version of the package tokenizers), so what was begun with "
                "those before cannot go on; the new ones are in the cache: begin again, of a run after "
                "'dsabench runs rm RUN'"
            )
        self._map(other._mapped)
        if self._crcs([block]) != [int(self.crc_K[block])]:
            raise DataError(
                f"{self._name} was damaged, was made anew, and is damaged again in block {block}: disk or memory of "
                "this machine fails; name another folder in DSABENCH_CACHE, and run the same command again"
            )
