"""Figures as parts of an HTML page: SVG elements whose text and lines follow the page's light or dark mode."""

from __future__ import annotations

import re

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from dsabench.figures.style import COLOURS, GREY, GRID, INK, PAPER, render
from dsabench.plain import visible

VARIABLES = {
    **{INK: "ink", GREY: "quiet", GRID: "line", PAPER: "back"},
    **{colour.lower(): f"variant-{i}" for i, colour in enumerate(COLOURS, 1)},
}
"""What stands in for each colour: names of the page's CSS variables, which have a value for light and one for dark."""


def inline_svg(figure: Figure, name: str, label: str, themed: bool = True) -> Markup:
    """`figure` as an <svg> element of the page, described by `label`; every id in it begins with `name`.

    themed: whether its colours follow the page; else it is made for a light ground.
    """
    svg = render(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head, end, body = svg.partition(">")
    head = re.sub(r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head)
    width, height = figure.get_size_inches()
    head += f' width="{96 * width:.0f}" height="{96 * height:.0f}" role="img" aria-label="{escape(visible(label))}"'
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(?<= id=")', f"{name}-", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r' (?:d|x|y|points)="[^"]*"', _shorter, body)
    if themed:
        body = re.sub(r"(fill|stroke): (#[0-9a-fA-F]{6})\b", _variable, body)
    return Markup(head + end + body.strip())  # matplotlib escapes the text in it


def _shorter(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])


def _variable(colour: re.Match[str]) -> str:
    name = VARIABLES.get(colour[2].lower())
    return f"{colour[1]}: var(--{name})" if name else colour[0]
