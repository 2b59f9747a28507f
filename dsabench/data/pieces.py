"""The text of single tokens: what a reader sees when a window is shown token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNDECODABLE = "\ufffd"

_LONGEST = 4
"""Tokens that one character may be spread over: UTF-8 has at most four bytes a character."""


def pieces(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[str]:
    """The text that each id adds to what stands before it; joined, they are decode(ids) wherever that is text.

    A character that is spread over several tokens stands at the first of them and the others have "". A token is
    decoded after its predecessor, because some tokenizers drop the space before the first token of a text.
    """
    ids = [int(token) for token in ids]
    found: list[str] = []
    while len(found) < len(ids):
        first = len(found)
        before = ids[max(0, first - 1) : first]
        skip = len(decode(before)) if before else 0
        for width in range(1, min(_LONGEST, len(ids) - first) + 1):
            text = decode([*before, *ids[first : first + width]])[skip:]
            if text and UNDECODABLE not in text:
                break
        else:  # no character ends here: the bytes are none, or the window cuts it
            width, text = 1, decode([*before, ids[first]])[skip:]
        found += [text] + [""] * (width - 1)
    return found
