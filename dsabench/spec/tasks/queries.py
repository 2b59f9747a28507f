"""The number of queries of a task, and the check of what is used once each."""

from __future__ import annotations


def asked(size: int, full: int, n_queries: int | None) -> int:
    """Queries at a size: all, or the share n_queries / full of them, at least one. Never more than the size, because
    n_queries <= full."""
    return size if n_queries is None else max(1, size * n_queries // full)


def used_once(one: str, more: int | None, other: str, most: int) -> None:
    """Raise ValueError where `more` of `one` are to be taken from `most` of `other`, each once."""
    if more is not None and more > most:
        raise ValueError(f"{one} = {more} is more than {other} = {most}, and each is used once; at most {most} fits")
