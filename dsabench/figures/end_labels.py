"""Direct labels: names of lines beside their ends, moved apart where they would touch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from dsabench.figures.style import INK

WIDTH = 34
"""Most characters of a line of a label."""

_LINE, _GAP = 0.14, 0.05
"""Inches: the height of a line of a label, and what is free between two labels."""


class EndLabel(NamedTuple):
    """The name of a line, and where the line ends."""

    text: str
    colour: str
    x: float
    y: float


def label_ends(axes: Axes, labels: Sequence[EndLabel], height: float = 2.7) -> None:
    """Write the labels at the right of a panel of `height` inches, in the order of their lines' ends, each with a short
    line in its colour. Call it when the limits of both axes are set."""
    if not labels:
        return
    ordered = sorted(labels, key=lambda label: label.y)
    texts = ["\n".join(textwrap.wrap(label.text, WIDTH, break_on_hyphens=False)) for label in ordered]
    sizes = np.array([(_LINE * (text.count("\n") + 1) + _GAP) / height for text in texts])
    inside = axes.transScale + axes.transLimits
    places = np.clip(inside.transform([(label.x, label.y) for label in ordered]), 0.0, 1.0)
    ends = places[:, 1]
    for label, text, (right, end), middle in zip(ordered, texts, places, spread(ends, sizes), strict=True):
        axes.plot(
            [right, 1.0, 1.05],
            [end, end, middle],
            color=label.colour,
            lw=0.8,
            transform=axes.transAxes,
            clip_on=False,
            zorder=1.5,
        )
        axes.text(
            1.06, middle, text, transform=axes.transAxes, va="center", ha="left", fontsize=8, color=INK, linespacing=1.0
        )


def spread(wanted: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Places of labels of these sizes, in ascending order: as near to the `wanted` ones as may be without touching.

    Neighbours that touch become a block around the mean of their places, until none does; a block stays within 0 to 1
    where it fits."""
    blocks: list[tuple[float, float, list[int]]] = []  # middle, size, labels
    for i, (place, size) in enumerate(zip(wanted, sizes, strict=True)):
        block = (_inside(float(place), float(size)), float(size), [i])
        while blocks and blocks[-1][0] + blocks[-1][1] / 2 > block[0] - block[1] / 2:
            before = blocks.pop()
            members = [*before[2], *block[2]]
            total = before[1] + block[1]
            block = (_inside(float(np.mean(wanted[members])), total), total, members)
        blocks.append(block)
    found = np.empty(len(wanted))
    for middle, total, members in blocks:
        at = middle - total / 2
        for i in members:
            found[i] = at + sizes[i] / 2
            at += sizes[i]
    return found


def _inside(middle: float, size: float) -> float:
    return 0.5 if size > 1 else min(1 - size / 2, max(size / 2, middle))
