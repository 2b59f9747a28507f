"""`dsabench report` as a user meets it, from trained runs to the page, and from a store that came from elsewhere."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import resealed
from figure_tools import report_with
from shell import Shell
from synthetic import experiment

SMALL = [
    "--config", "quick", "--set", "model.d_model=32", "--set", "model.n_heads=2", "--set", "model.d_ff=16",
    "--set", "train.steps=4", "--set", "train.warmup_steps=1", "--set", "train.eval_every=4", "--set",
    "train.tokens_per_step=64", "--set", "train.eval_tokens=64", "--set", "data.vocab_size=300", "--set",
    "data.val_share=0.25", "--set", "attention.indexer.head_dim=8", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other figures take seconds and have tests of their own."""
    report_with(monkeypatch, "forest")


def test_from_trained_runs_to_what_they_select(
    shell: Shell, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ["--set", f"data.source=path:{corpus}"]
    code, _, err = shell("sweep", *SMALL, *source, "--lengths", "16", "--seeds", "1", "-q")
    assert code == 0, err
    code, out, err = shell("report")
    assert (code, out) == (0, "Written: results/report.html\n"), err
    text = (tmp_path / "results/report.html").read_text(encoding="utf-8")
    assert "(val_loss, 1 seed a length): " in text and " at 16 tokens" in text
    assert 'srcdoc="&lt;!DOCTYPE html&gt;' in text
    assert "Selection by layer" in text
    page = html.unescape(text.partition('srcdoc="')[2].partition('"')[0])
    assert "Selection of dsa-L16-s1-" in page and page.rstrip().endswith("</html>")
    first = (tmp_path / "results/report.html").read_bytes()
    code, out, _ = shell("report", "--out", "again", "--json", "-q")
    document = json.loads(out)
    assert document["selection"].startswith("dsa-L16-s1-")
    assert (tmp_path / "again/report.html").read_bytes() == first

    # On another machine there is neither the corpus nor a cache.
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "no cache"))
    for run in (tmp_path / "elsewhere").glob("d*/run.json"):
        resealed.replace(run, str(corpus), "/nowhere")
    code, out, err = shell("report", "--store", "elsewhere", "--out", "moved")
    assert code == 0
    assert f"note: selection: What {document['selection']} selects cannot be shown" in err
    assert "selects cannot be shown" in (tmp_path / "moved/report.html").read_text(encoding="utf-8")


def test_what_it_prints(shell: Shell, tmp_path: Path) -> None:
    experiment(tmp_path / "runs", lengths=(64,), seeds=(1, 2, 3))
    code, out, err = shell("report", "--out", "there")
    assert (code, out) == (0, "Written: there/report.html\n")
    assert "note: selection: No finished run of these selects and has its checkpoint" in err
    code, out, err = shell(
        "report", "--no-selection", "--json", "--where", "length == 64", "--margin", "0.1", "--quiet"
    )
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["report"] == "results/report.html"
    assert document["files"] == ["results/report.html"]
    assert document["scope"] == "sweep synthetic-00000000 where length == 64"
    assert "not worse by 0.1 nats per token" in document["sentences"][0]
    assert {check["outcome"] for check in document["checks"]} == {"ok"}, "synthetic runs have no defect"
    assert document["selection"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--store", "nowhere"), "no run store there"),
        (("--margin", "0"), "a number above 0 is accepted"),
        (("--run", "dsa", "--no-selection"), "exclude each other"),
        (("--run", "nonsense"), "no run starts with that"),
        (("--baseline", "dens"), "no run has that attention; did you mean dense?"),
        (("--sweep", "other"), "no such sweep"),
        (("--sweep", "s", "--all"), "exclude each other"),
        (("--out", "runs/store.json"), "is a file; name a folder"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    words: tuple[str, ...], message: str, shell: Shell, tmp_path: Path
) -> None:
    experiment(tmp_path / "runs", lengths=(64,), seeds=(1,))
    code, out, err = shell("report", *words)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_report_needs_no_torch_without_a_checkpoint(tmp_path: Path) -> None:
    experiment(tmp_path / "runs", lengths=(64,), seeds=(1, 2, 3))
    code = (
        "import atexit, sys; sys.argv = ['dsabench', 'report']\n"
        "from dsabench.report import report_page; report_page._ORDER, report_page.FIGURES = (), {}\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "from dsabench.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("False\n")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys; sys.argv = ['dsabench', 'report', '--help']\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'numpy', 'jinja2'}\n"
        "atexit.register(lambda: print('loaded:', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from dsabench.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "loaded: []" in done.stderr
    assert "--no-selection" in done.stdout
