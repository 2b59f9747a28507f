"""The bytes of text that each id of a tokenizer stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTE_CHARACTERS = frozenset(map(chr, [*range(33, 127), *range(161, 173), *range(174, 324)]))
"""The 256 printable characters by which byte-level vocabularies write bytes (GPT-2's table): each is one byte."""


def token_bytes(tokenizer: Any, vocabulary: dict[str, int], size: int) -> NDArray[np.int64]:
    """Bytes of each id below `size`; 0 where there is no token."""
    stages = [stage.__getstate__() for stage in (tokenizer.pre_tokenizer, tokenizer.decoder) if stage is not None]
    byte_level = any(b'"ByteLevel"' in stage for stage in stages)
    added = tokenizer.get_added_tokens_decoder()
    token_bytes_V = np.zeros(size, np.int64)
    for token, number in vocabulary.items():
        if number in added:
            token_bytes_V[number] = len(token.encode())
        elif byte_level and _BYTE_CHARACTERS.issuperset(token):
            token_bytes_V[number] = len(token)
        else:
            token_bytes_V[number] = _plain_bytes(token)
    return token_bytes_V


def _plain_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.removeprefix("##").replace("\u2581", " ").encode())
