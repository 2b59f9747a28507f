"""`dsabench plot`: files, notes, and mistakes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic
from shell import Shell

from dsabench.figures import style
from dsabench.figures.catalogue import FIGURES

Plot = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plot(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Plot:
    """`dsabench plot WORDS` in a folder that has a store, at a resolution that costs little."""
    monkeypatch.setattr(style, "DPI", 40)
    synthetic.experiment(shell.folder / "runs", lengths=(64,), seeds=(1, 2))
    return functools.partial(shell, "plot")


def test_all_figures_are_written_and_what_is_missing_is_said(plot: Plot) -> None:
    code, out, err = plot()
    assert code == 0, err
    written = sorted(path.name for path in (Path() / "results").iterdir())
    assert written == [
        *("copies.png", "experiment.png", "flops.png", "forest.png", "indexer.png", "learning.png", "positions.png"),
        "seconds.png",
    ]
    assert out.splitlines()[0] == "Written: results/experiment.png"
    assert len(out.splitlines()) == len(written)
    assert "sparsity: needs at least two k/L of one attention at one length; try --top-k-ratios 0.1 0.25 0.5" in err
    assert "cost: needs at least two lengths; try --lengths 64 128 256" in err


def test_chosen_figures_and_formats_as_one_document(plot: Plot) -> None:
    code, out, err = plot("flops", "cost", "--formats", "svg", "pdf", "--out", "here", "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(out)
    files = ["here/flops.svg", "here/flops.pdf"]
    assert document["figures"] == [{"name": "flops", "files": files, "notes": []}]
    assert [skipped["name"] for skipped in document["skipped"]] == ["cost"]
    assert document["scope"] == "sweep synthetic-00000000"
    assert sorted(str(path.relative_to(Path())) for path in (Path() / "here").iterdir()) == sorted(files)


@pytest.mark.parametrize("name", ["sequence_length_comparison", "loss_by_step", "loss_by_flops"])
def test_names_that_files_had_are_accepted(plot: Plot, name: str) -> None:
    code, out, err = plot(name)
    assert code == 0, err
    (file,) = (Path() / "results").iterdir()
    assert out == f"Written: results/{file.name}\n"
    assert FIGURES[file.stem].former == name


def test_scope_options_choose_the_runs(plot: Plot) -> None:
    synthetic.experiment(Path() / "runs", lengths=(128,), seeds=(1, 2), sweep="later-00000000", minutes=9)
    code, out, err = plot("cost")
    assert code == 2
    assert "needs at least two lengths" in err
    code, out, err = plot("cost", "--all")
    assert code == 0
    assert "all 8 runs" in err
    code, out, err = plot("flops", "--where", "length == 64", "--all")
    assert (code, out) == (0, "Written: results/flops.png\n")
    code, out, err = plot("flops", "--sweep", "synth", "--baseline", "dsa")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flopz"], "figure flopz is unknown; did you mean flops?"),
        (["nosuch"], "figure nosuch is unknown; known: experiment, learning, flops, "),
        (["--formats", "jpg"], "--formats jpg is unknown; did you mean png?"),
        (["--formats", "docx"], "--formats docx is unknown; known: png, svg, pdf"),
        (["--formats", "png", "flops"], "name figures before --formats"),
        (["--sweep", "none"], "--sweep none: no such sweep"),
        (["--baseline", "dens"], "--baseline dens: no run has that attention; did you mean dense?"),
        (["--store", "nowhere"], "nowhere"),
        (["--out", "file"], "--out file"),
        (["cost", "sparsity"], "nothing to draw of sweep synthetic-00000000: cost: needs at least two lengths"),
    ],
)
def test_a_mistake_is_one_message_exit_2_and_no_file(plot: Plot, words: list[str], message: str) -> None:
    (Path() / "file").write_text("")
    code, out, err = plot(*words, "--quiet")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (Path() / "results").exists()


def test_reasons_are_said_once(plot: Plot) -> None:
    code, _, err = plot("cost", "sparsity", "--where", "length == 64")
    assert code == 2
    assert err.count("needs at least two lengths") == 1
    assert "error: nothing to draw of sweep synthetic-00000000 where length == 64; why is said above" in err


def test_a_plot_loads_no_torch_and_its_help_nothing_heavy(plot: Plot) -> None:
    for words, heavy in ((["flops", "forest"], {"torch", "pyplot"}), (["--help"], {"torch", "pandas", "matplotlib"})):
        code = (
            f"import sys; sys.argv = ['dsabench', 'plot', *{words!r}]\n"
            "from dsabench.cli.app import main\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            f"print('heavy:', sorted({heavy!r} & {{name.rpartition('.')[2] for name in sys.modules}}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr
