"""Crossover lengths, from which on an implementation is faster: straight lines in log-log between times."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dsabench.bench.document import Crossover


def crossover(mine: Mapping[int, float], theirs: Mapping[int, float], name: str, against: str) -> Crossover:
    """The length beyond which `mine` ({length: ms}) stays below `theirs`, over the lengths that both have.

    Between the last length at which it is not faster and the next one, log(mine / theirs) is a straight line over
    log(length); the crossover is where that is 0. Of several crossings the last counts.
    """
    lengths = sorted(set(mine) & set(theirs))
    if not lengths:
        words = f"{name} and {against} have no comparable times at any length."
        return _found(name, against, None, "not measured", words)
    ratio = {length: math.log(mine[length] / theirs[length]) for length in lengths}
    slower = [length for length in lengths if ratio[length] >= 0]
    if not slower:
        words = f"{name} is faster than {against} at every length measured, from L = {lengths[0]:,} on."
        return _found(name, against, float(lengths[0]), "at or below", words)
    low = slower[-1]
    if low == lengths[-1]:
        times = f"{mine[low] / theirs[low]:.2f} times as long"
        once = f"; it was faster at L = {_listed(lengths, slower)}" if len(slower) < len(lengths) else ""
        words = f"{name} is not faster than {against} up to L = {low:,}, where it takes {times}{once}."
        return _found(name, against, None, "never", words)
    high = lengths[lengths.index(low) + 1]
    share = ratio[low] / (ratio[low] - ratio[high])
    length = math.exp(math.log(low) + share * math.log(high / low))
    earlier = [one for one in lengths if one < low and ratio[one] < 0]
    once = f"; faster below that too, at L = {', '.join(f'{one:,}' for one in earlier)}" if earlier else ""
    words = f"{name} is faster than {against} from about L = {length:,.0f} on{once}."
    return _found(name, against, length, "interpolated", words)


def _listed(lengths: list[int], slower: list[int]) -> str:
    return ", ".join(f"{length:,}" for length in lengths if length not in slower)


def _found(name: str, against: str, length: float | None, relation: str, words: str) -> Crossover:
    return Crossover.model_validate(
        {"implementation": name, "against": against, "length": length, "relation": relation, "words": words}
    )
