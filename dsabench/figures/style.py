"""The style of every figure: colours, markers and lines that tell variants apart in colour and in grey; saving.

Colours: Okabe and Ito, "Color Universal Design" (2008), without the yellow, too light for lines on white.

In an SVG text is text, the ground is transparent, and what is no data has one of four colours, INK, GREY, GRID and
PAPER, so that a page with a light and a dark mode can put its own in their place (and for the black of COLOURS).
Its ids differ from those of any other figure.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from dsabench.analysis.variants import variant_order
from dsabench.plain import signs, visible
from dsabench.store.files import write_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
INK, GREY, GRID, PAPER = "#262626", "#595959", "#e3e3e3", "#fefefe"
"""Of text and names; of what stands back; of grid lines; of the edge that parts a marker from a line below it."""

DPI = 200

_FONTS = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"
"""What a browser may set an SVG's text in: the first as measured here, those after it no wider."""

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
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
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


def settle(figure: Figure) -> Figure:
    """Lay `figure` out, once and for every format: what one format asks for cannot move what another shows.

    Text of records may hold anything: what no font has and no SVG may hold is spelt out first.
    """
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        for text in figure.findobj(mpl.text.Text):
            assert isinstance(text, mpl.text.Text)
            text.set_text("\n".join(visible(line) for line in signs(text.get_text()).split("\n")))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def render(figure: Figure, form: str) -> bytes:
    """`figure` as a png, svg or pdf file; the same figure gives the same bytes: no date and no version is in it."""
    buffer = io.BytesIO()
    with styled():
        settle(figure)
        if form == "png":
            # Not by savefig, which draws everything once more for a layout that `settle` has made.
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
        elif form == "pdf":
            nothing = dict.fromkeys(("Creator", "Producer", "CreationDate"))
            figure.savefig(buffer, format="pdf", metadata=nothing)
        else:
            assert form == "svg", form
            mpl.rcParams["svg.hashsalt"] = _salt(figure)
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
            return _inlinable(buffer.getvalue().decode()).encode()
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` to `path` in one go, as its suffix says. Returns `path`; raises ResultsError."""
    return write_file(path, render(figure, path.suffix.removeprefix(".")))


def save_png(figure: Figure, path: Path) -> Path:
    """Write `figure` to `path` as a PNG, whatever its name. Returns `path`; raises ResultsError."""
    return write_file(path, render(figure, "png"))


def _salt(figure: Figure) -> str:
    """Text that differs between figures: ids of two SVGs on one page must not meet."""
    words = [text.get_text() for text in figure.findobj(mpl.text.Text) if isinstance(text, mpl.text.Text)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _inlinable(svg: str) -> str:
    """`svg` fit for a page: no id that nothing refers to (every file has an `axes_1`), no style for the whole page."""
    svg = re.sub(r"\s*<defs>\s*<style[^>]*>\*\{([^}]*)\}</style>\s*</defs>", "", svg, count=1)
    svg = svg.replace("<svg ", '<svg style="stroke-linejoin: round; stroke-linecap: butt" ', 1)
    used = set(re.findall(r"#([A-Za-z0-9_.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in used else "", svg)
    return re.sub(r"'DejaVu Sans'(?:, [^;:\"]*?sans-serif)?", _FONTS, svg)


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
