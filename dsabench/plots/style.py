"""How every figure looks: colours, markers and lines that tell variants apart in colour and in grey, and saving.

Colours: Okabe and Ito, "Color Universal Design" (2008), without the yellow, which is too light for lines on white.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dsabench.analysis.experiment import write_file
from dsabench.analysis.variants import variant_order

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
GREY = "#595959"
DPI = 200

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
    """Matplotlib's defaults and this style for as long as the block runs, whatever the user's own settings are."""
    with matplotlib.style.context(["default", _RC]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches without pyplot, so that nothing of the user's session changes."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> Path:
    """Write `figure` to `path` in one go; the same figure gives the same bytes. Raises ResultsError."""
    buffer = io.BytesIO()
    # Matplotlib would write its version into the file.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return write_file(path, buffer.getvalue())


def length_axis(axes: Axes, lengths: Sequence[int], width: float) -> None:
    """A log2 x axis with a tick at each length; labels that would touch on an axis `width` inches wide are left out."""
    axes.set_xscale("log", base=2)
    first, last = min(lengths), max(lengths)
    pad = 2 ** max(0.4, 0.05 * (last / first).bit_length() if isinstance(last / first, int) else 0.4)
    axes.set_xlim(first / pad, last * pad)
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
