"""A machine without a home folder, a place for temporary files or a cache that can be written: one message each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from dsabench.data.cache import cache_folder
from dsabench.errors import DataError, DsabenchError, SpecError
from dsabench.spec.config import load_sweep
from dsabench.spec.run import validate
from dsabench.user_folders import expanded, temporary_folder

HOMELESS = """
import os, pwd, sys

def gone(*_):
    raise KeyError("uid not found")

pwd.getpwuid = gone
os.getuid = lambda: 12345
for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
from dsabench.cli.app import main

sys.argv[0] = "dsabench"
main()
"""
"""A process of a user id without an entry in the password database, as containers have, and without HOME."""

SMALL = [
    "--set", "model.d_model=16", "--set", "model.n_heads=2", "--set", "model.n_layers=1", "--set", "train.steps=1",
    "--set", "train.warmup_steps=0", "--set", "train.tokens_per_step=64", "--set", "train.eval_tokens=64",
    "--set", "data.tokenizer=bytes", "--length", "16", "--attention", "dense", "--device", "cpu", "--quiet",
]  # fmt: skip


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd")

    def gone(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", gone)
    for name in ("HOME", "XDG_CACHE_HOME", "DSABENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)


def command(folder: Path, *words: str, **variables: str) -> tuple[int, list[str]]:
    """Exit code and the lines of stderr of a command without a home."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "CI": "1", **variables}
    line = [sys.executable, "-c", HOMELESS, *words]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr.splitlines()


def texts(folder: Path) -> Path:
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"{i} " + "some words of a text\n" * 20, encoding="utf-8")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="has no password database")
def test_without_a_home_a_run_works_with_a_cache_that_is_named_and_else_says_how(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    source = f"data.source=path:{texts(tmp_path / 'texts')}"
    code, lines = command(tmp_path, "train", *SMALL, "--set", source, DSABENCH_CACHE="")
    assert (code, len(lines)) == (2, 1)
    assert "HOME is not set, and user id 12345 is not in the password database" in lines[0]
    assert lines[0].endswith("name a folder you can write in the environment variable DSABENCH_CACHE")
    assert not (tmp_path / "~").exists()
    code, lines = command(tmp_path, "train", *SMALL, "--set", source, DSABENCH_CACHE=str(tmp_path / "cache"))
    assert (code, lines) == (0, [])
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "cache", "runs"}


def test_a_home_that_is_not_known_is_said(homeless: None) -> None:
    reason = r"the home folder is not known: HOME is not set"
    with pytest.raises(DataError, match=rf"no place for the data cache: {reason}.* DSABENCH_CACHE$"):
        cache_folder("tokens")
    with pytest.raises(DataError, match=rf"^~/a\.txt: {reason}.*; set HOME, or give the path without ~$"):
        expanded("~/a.txt", DataError)
    with pytest.raises(SpecError, match="HOME is not set") as caught:
        validate({"plugins": ["~/mine.py"]})
    assert "\n" not in str(caught.value)


def test_a_platform_that_leaves_the_tilde_makes_no_folder_of_that_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSABENCH_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: f"~/.cache/{name}")
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(DataError, match="HOME = 'here' is no absolute path"):
        cache_folder("tokens")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["~nobody-of-that-name", "~nobody-of-that-name/texts/*.txt"])
def test_a_user_that_there_is_not_is_named(name: str) -> None:
    with pytest.raises(DataError, match=r"there is no user 'nobody-of-that-name'; put \./ before"):
        expanded(name, DataError)


def test_other_paths_stay_as_they_are(homeless: None) -> None:
    for name in ("a~b", "./~/a", "/~", "a/~/b", ""):
        assert expanded(name, DataError) == Path(name)
    load_sweep("quick")  # needs no home


def test_no_place_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    with pytest.raises(DsabenchError, match=r"no place for temporary files: TMPDIR = .*gone cannot .*; set .* TMPDIR"):
        temporary_folder()


def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write the data cache at .*file.* DSABENCH_CACHE$"):
        cache_folder("tokens")
