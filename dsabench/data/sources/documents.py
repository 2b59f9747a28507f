"""Documents as readers give them: in parts of bounded size, of text or of token ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PART_CHARS = 2**18
"""Longest part of a document in characters (or token ids); parts are cut after a line end where there is one."""

Part = str | NDArray[np.unsignedinteger]
"""Text, or the token ids of a .bin file."""


@dataclass(frozen=True)
class Document:
    """One document of a file."""

    record: int
    """Its number in the file, from 1 (of a line, a row); 0 when the file is the document."""

    parts: Iterable[Part]
    """Its content in order, lazily: to be read once, before the next document is asked for."""

    piece: int = 0
    """Which piece of the record it is, from 1; 0 when it is all of it."""


@dataclass(frozen=True)
class Ids:
    """The ids of a .bin file, as the tokenizer that made them defines them."""

    vocab_size: int
    end_of_document: int
