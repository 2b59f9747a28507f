"""How every figure looks: colours, markers and lines that tell variants apart in colour and in grey; saving.

Colours: Okabe and Ito, "Color Universal Design" (2008), without the yellow, too light for lines on white.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from dsabench.analysis.experiment import write_file
from dsabench.analysis.variants import variant_order

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
GREY = "#595959"
DPI = 200

_DIGIT = 0.08
"""Width in inches of a digit of a tick label."""

_RC = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#262626",
    "ytick.labelcolor": "#262626",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of one variant."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """A look for each variant, in their order. Dense is always the first look, and nothing else ever is."""
    ordered = sorted(set(variants), key=variant_order)
    start = 0 if ordered and ordered[0].split(" ")[0] == "dense" else 1
    # 7, 8 and 5 have no common divisor: looks repeat after 280 variants.
    return {
        variant: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, variant in enumerate(ordered, start)
    }


def display_name(variant: str) -> str:
    """A variant as legends write it: `dsa` is DSA."""
    kind, space, fields = variant.partition(" ")
    return ("DSA" if kind == "dsa" else kind) + space + fields


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's defaults and this style while the block runs, whatever the user's own settings are."""
    with matplotlib.style.context(["default", _RC]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches, without pyplot: nothing of the user's session changes."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> Path:
    """Write `figure` to `path` in one go; the same figure gives the same bytes. Raises ResultsError."""
    buffer = io.BytesIO()
    # Matplotlib would write its version into the file.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return write_file(path, buffer.getvalue())


def length_axis(axes: Axes, lengths: Sequence[int], width: float, margin: float) -> None:
    """A log2 x axis with a tick at each length and `margin` octaves or more on both sides.

    Labels that would touch on an axis `width` inches wide are left out, those of short lengths first.
    """
    ordered = sorted(set(lengths))
    span = math.log2(ordered[-1] / ordered[0])
    pad = max(0.4, 0.06 * span, margin)
    axes.set_xscale("log", base=2)
    axes.set_xlim(ordered[0] / 2**pad, ordered[-1] * 2**pad)
    octaves_per_inch = (span + 2 * pad) / width
    labels: list[str] = []
    free = math.inf  # labels are set from the longest length down; left of this, in octaves, there is room
    for length in reversed(ordered):
        half = 0.5 * _DIGIT * (len(str(length)) + 1) * octaves_per_inch
        fits = math.log2(length) + half <= free
        labels.append(str(length) if fits else "")
        if fits:
            free = math.log2(length) - half
    axes.xaxis.set_major_locator(FixedLocator(ordered))
    axes.xaxis.set_major_formatter(FixedFormatter(labels[::-1]))
    axes.xaxis.set_minor_locator(NullLocator())
