"""`dsabench plot`: files, notes, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

from dsabench.cli import app
from dsabench.plots import style


class Shell:
    """Runs a command line in a folder that has a store; (exit code, stdout, stderr)."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.patch = folder, capsys, patch
        patch.chdir(folder)
        patch.delenv("DSABENCH_DEBUG", raising=False)
        patch.delenv("DSABENCH_STORE", raising=False)
        patch.setattr(style, "DPI", 40)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.patch.setattr("sys.argv", ["dsabench", "plot", *words])
        with pytest.raises(SystemExit) as caught:
            app.main()
        out = self.capsys.readouterr()
        return int(caught.value.code or 0), out.out, out.err


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    synthetic.experiment(tmp_path / "runs", lengths=(64,), seeds=(1, 2))
    return Shell(tmp_path, capsys, monkeypatch)


def test_all_figures_are_written_and_what_is_missing_is_said(shell: Shell) -> None:
    code, out, err = shell()
    assert code == 0, err
    written = sorted(path.name for path in (shell.folder / "results").iterdir())
    assert written == [
        "forest.png", "indexer_in_training.png", "loss_by_flops.png", "loss_by_position.png", "loss_by_seconds.png",
        "sequence_length_comparison.png",
    ]  # fmt: skip
    assert out.splitlines()[0] == "Written: results/sequence_length_comparison.png"
    assert len(out.splitlines()) == 6
    assert "sparsity: needs at least two k/L of one attention at one length; try --top-k-ratios 0.1 0.25 0.5" in err
    assert "cost: needs at least two lengths; try --lengths 64 128 256" in err


def test_chosen_figures_and_formats_as_one_document(shell: Shell) -> None:
    code, out, err = shell("flops", "cost", "--formats", "svg", "pdf", "--out", "here", "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(out)
    files = ["here/loss_by_flops.svg", "here/loss_by_flops.pdf"]
    assert document["figures"] == [{"name": "flops", "files": files, "notes": []}]
    assert [skipped["name"] for skipped in document["skipped"]] == ["cost"]
    assert document["scope"] == "sweep synthetic-00000000"
    assert sorted(str(path.relative_to(shell.folder)) for path in (shell.folder / "here").iterdir()) == sorted(files)


def test_scope_options_choose_the_runs(shell: Shell) -> None:
    synthetic.experiment(shell.folder / "runs", lengths=(128,), seeds=(1, 2), sweep="later-00000000", minutes=9)
    code, out, err = shell("cost")
    assert code == 2
    assert "needs at least two lengths" in err
    code, out, err = shell("cost", "--all")
    assert code == 0
    assert "all 8 runs" in err
    code, out, err = shell("flops", "--where", "length == 64", "--all")
    assert (code, out) == (0, "Written: results/loss_by_flops.png\n")
    code, out, err = shell("flops", "--sweep", "synth", "--baseline", "dsa")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flopz"], "figure flopz: not one of experiment, flops, "),
        (["flopz"], "did you mean flops?"),
        (["--formats", "jpg"], "--formats jpg: not one of png, svg, pdf"),
        (["--formats", "png", "flops"], "name figures before --formats"),
        (["--sweep", "none"], "--sweep none: no such sweep"),
        (["--baseline", "dens"], "--baseline dens: no run has that attention; did you mean dense?"),
        (["--store", "nowhere"], "nowhere"),
        (["--out", "file"], "--out file"),
        (["cost", "sparsity"], "nothing to draw of sweep synthetic-00000000: cost: needs at least two lengths"),
    ],
)
def test_a_mistake_is_one_message_exit_2_and_no_file(shell: Shell, words: list[str], message: str) -> None:
    (shell.folder / "file").write_text("")
    code, out, err = shell(*words, "--quiet")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (shell.folder / "results").exists()


def test_a_plot_loads_no_torch_and_its_help_nothing_heavy(shell: Shell) -> None:
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
