"""The page: one file without a network, hostile text is text, the bytes say what was captured, colours can be read."""

from __future__ import annotations

import base64
import colorsys
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import asking, attention, inspection, random_layer

from dsabench.selection.capture import LayerSelection
from dsabench.selection.numbers import layer_recall_T, missed_TS
from dsabench.selection.text_page import layer_bytes, page, selection_page

HOSTILE = [
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "<!--", "]]>", "&amp;", "\x1b[31mred",
    "\u202e", "{{DATA}}", "\\", '"', "'", "\u2028", "\x00", "\x9b31m", "\ufffd",
]  # fmt: skip


class Elements(HTMLParser):
    """Start tags with their attributes, and the content of script elements by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = (dict(attrs).get("id") or "code") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open = None


def decode(block: bytes, length: int, scored: bool) -> dict[str, Any]:
    """What the page's own code reads from a block, as the module's docstring describes it."""
    at = 0

    def take(dtype: str, n: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(block, dtype, n, at)
        at += values.nbytes
        return values

    found: dict[str, Any] = {name: take("<u4", length) for name in ("n_selected", "n_missed")}
    found |= {name: take("<f4", length) for name in ("recall", "low", "high")}
    n_pairs = length * (length + 1) // 2
    for name in ("selected", "missed"):
        found[name] = np.zeros((length, length), bool)
        found[name][np.tril_indices(length)] = np.unpackbits(take("u1", -(-n_pairs // 8)))[:n_pairs]
    found["mass"] = take("u1", int(found["n_selected"].sum() + found["n_missed"].sum()))
    found["score"] = take("u1", int(found["n_selected"].sum()) if scored else 0)
    assert at == len(block)
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 1000), st.booleans())
def test_a_block_says_what_was_captured(length: int, k: int, seed: int, scored: bool) -> None:
    layer = random_layer(length, k, seed)
    if not scored:
        layer = LayerSelection(0, layer.selected_TK, layer.mass_TS, None)
    missed = missed_TS(layer)
    found = decode(layer_bytes(layer), length, scored)
    assert np.array_equal(found["selected"], layer.member_TS)
    assert np.array_equal(found["missed"], missed)
    assert found["n_selected"].tolist() == layer.n_selected_T.tolist()
    assert found["n_missed"].tolist() == missed.sum(axis=1).tolist()
    assert found["recall"] == pytest.approx(layer_recall_T(layer), abs=1e-6)
    mass = 1e-6 * 10 ** (6 * (found["mass"].astype(float) - 1) / 254)
    assert mass == pytest.approx(layer.mass_TS[layer.member_TS | missed], rel=0.03)
    if layer.scores_TS is not None:
        span = (found["high"] - found["low"]).repeat(layer.n_selected_T)
        score = found["low"].repeat(layer.n_selected_T) + span * found["score"] / 255
        assert score == pytest.approx(layer.scores_TS[layer.member_TS], abs=float(span.max()) / 255)


def test_the_smallest_and_largest_mass_and_scores_without_bound() -> None:
    layer = random_layer(4, 2)
    mass = np.zeros((4, 4), np.float32)
    mass[:, 0] = 1
    mass[3, 1] = 2e-6
    assert layer.scores_TS is not None
    scores = np.where(np.eye(4) > 0, -np.inf, layer.scores_TS).astype(np.float32)
    found = decode(layer_bytes(LayerSelection(0, np.tile([0, 1], (4, 1)).astype(np.int32), mass, scores)), 4, True)
    assert found["mass"].max() == 255
    assert found["mass"].min() == 0
    assert 1 <= found["mass"][-1] <= 20
    assert np.isfinite(found["low"]).all()


@pytest.mark.parametrize("where", ["pieces", "source", "notes"])
def test_hostile_text_stays_text(where: str) -> None:
    benign, layer = [" w"] * len(HOSTILE), random_layer(len(HOSTILE), 4)
    args: dict[str, Any] = {"pieces": benign, "source": "x", "notes": ("y",)}
    plain = Elements(page(inspection([layer], **args)))
    args[where] = {"pieces": HOSTILE, "source": "".join(HOSTILE), "notes": tuple(HOSTILE)}[where]
    text = page(inspection([layer], **args))
    found = Elements(text)
    assert [tag for tag, _ in found.tags if tag != "li"] == [tag for tag, _ in plain.tags if tag != "li"]
    assert not set("\x1b\x9b\u202e\u2028\x00") & set(text)
    assert not set("<>&") & set(found.scripts["data"])  # nor a comment, nor a script in a script
    if where == "pieces":
        tokens = json.loads(found.scripts["data"])["tokens"]
        assert tokens[0] == HOSTILE[0]
        assert tokens[5] == "\\x1b[31mred"
        assert tokens[7] == "{{DATA}}"
    else:
        assert html.escape(HOSTILE[0]) in text
        assert "{{DATA}}" in text


def test_nothing_is_fetched_and_the_policy_forbids_it() -> None:
    text = page(inspection([random_layer(8, 2), random_layer(8, 2, 3, 1)]))
    found = Elements(text)
    written = re.sub(r'(<script type="text/plain"[^>]*>)[A-Za-z0-9+/=]+', r"\1", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|import\s*\(|fetch\(|XMLHttp", written)
    addresses = [a for _, attrs in found.tags for name in ("src", "href") if (a := attrs.get(name)) is not None]
    assert addresses == ["data:,"]
    policy = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "{{" not in text
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]


def test_the_page_holds_every_layer_and_its_numbers() -> None:
    layers = [random_layer(9, 3), random_layer(9, 3, 5, 2)]
    seen = inspection(layers, pieces=["a\n", "", *"bcdefgh"])
    found = Elements(page(seen))
    data = json.loads(found.scripts["data"])
    assert data["tokens"][:2] == ["a\u21b5\n", "\u00b7"]
    assert [one["layer"] for one in data["layers"]] == [0, 2]
    assert data["layers"][1]["mass_recall"] == seen.numbers["layers"][1]["mass_recall"]
    assert data["chance"][0][-1] == pytest.approx(1 / 3, abs=1e-4)
    for i, layer in enumerate(layers):
        assert base64.b64decode(found.scripts[f"layer-{i}"]) == layer_bytes(layer)


def test_everything_selected_and_a_single_token_make_a_page_too(tmp_path: Path) -> None:
    for length in (1, 5):
        seen = inspection([random_layer(length, 5)])
        assert seen.numbers["mean"]["mass_recall"] is None
        first = selection_page(seen, tmp_path / "a.html").read_bytes()
        assert selection_page(seen, tmp_path / "b.html").read_bytes() == first


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa_and_the_ramp_is_a_ramp_in_grey(scheme: str) -> None:
    text = page(inspection([random_layer(4, 2)]))
    blocks = re.findall(r":root \{(.*?)\}", text, re.S)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    pairs = [(f"t{i}", f"s{i}") for i in range(1, 6)]
    pairs += [(name, "back") for name in ("text", "quiet", "future", "link")]
    pairs += [("missed", "missed-back"), ("query-text", "query")]
    for front, back in pairs:
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    ramp = [luminance(colours[f"s{i}"]) for i in range(1, 6)]
    assert ramp == sorted(ramp, reverse=scheme == "light")
    # Missed is told from selected without colour (a dashed line), and by colours apart for every kind of vision.
    assert "underline dashed" in text
    hue = [colorsys.rgb_to_hsv(*(int(colours[n][i : i + 2], 16) / 255 for i in (1, 3, 5)))[0] for n in ("missed", "s4")]
    assert hue[0] < 0.15
    assert 0.5 < hue[1] < 0.7


@pytest.mark.slow
def test_the_page_and_the_numbers_need_no_torch() -> None:
    code = (
        "import sys, dsabench.selection.numbers, dsabench.selection.stored_run, dsabench.selection.text_page, "
        "dsabench.selection.maps, dsabench.cli.views.selection_text, dsabench.cli.commands.visualize_selection; "
        "print(*{'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_the_page_of_a_task_knows_its_queries_and_that_of_a_text_nothing_of_them() -> None:
    layers = [random_layer(30, 9, layer=0), LayerSelection(1, random_layer(30, 9, 4).selected_TK, attention(30), None)]
    questions = asking(30, {12: [3], 25: [2, 8]}, wrong=(12,))
    seen = inspection(layers, questions=questions)
    text = page(seen)
    data = json.loads(Elements(text).scripts["data"])
    assert data["separator"] == " "
    assert data["layers"][data["first"]]["layer"] == seen.default_layer.layer
    assert [(one["query"], one["answer"], one["model"]) for one in data["asked"]] == [
        (12, "a12", "no"),
        (25, "a25", "a25"),
    ]
    for one in data["asked"]:
        assert [target["key"] for target in one["targets"]] == questions.targets(one["query"])
        for target in one["targets"]:
            for layer, rank in zip(layers, target["ranks"], strict=True):
                kept = layer.selected_TK[one["query"]].tolist()
                selected = target["key"] in kept
                first = kept.index(target["key"]) + 1 if selected and layer.scores_TS is not None else 0
                assert rank == (first if selected else -1)
    plain = page(inspection(layers))
    assert {"separator", "first", "asked"}.isdisjoint(json.loads(Elements(plain).scripts["data"]))
    for word in ("asked", "outlined", "--target", 'id="targets"'):
        assert word in text
        assert word not in plain
    for one in (text, plain):
        assert not re.search(r"(//|/\*|<!--) task", one)
    # What a text's page has, a task's has too, in the same order.
    lines = iter(text.split("\n"))
    own = [line for line in plain.split("\n") if "<script" not in line]
    assert all(line in lines for line in own)
    for scheme in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", scheme))
        assert contrast(colours["target"], colours["back"]) >= 4.5


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to show the page in")
def test_a_browser_outlines_the_targets_of_the_query(tmp_path: Path) -> None:
    layer = random_layer(30, 9)
    kept, lost = int(layer.selected_TK[25, 0]), min(set(range(25)) - set(layer.selected_TK[25].tolist()))
    seen = inspection([layer], questions=asking(30, {12: [3], 25: [kept, lost]}))
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom",
        selection_page(seen, tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    classes = dict(re.findall(r'<span data-i="(\d+)"[^>]*? class="([^"]*)"', done.stdout))
    outlined = {int(i): set(names.split()) & {"x", "y"} for i, names in classes.items()}
    assert {i: names for i, names in outlined.items() if names} == {kept: {"x", "y"}, lost: {"x"}}
    assert f"w{kept}\u201d at {kept}: selected, rank 1 of 9." in done.stdout
    assert f"w{lost}\u201d at {lost}: not selected." in done.stdout
    assert re.findall(r'data-i="(\d+)" data-asks', done.stdout) == ["12", "25"]
