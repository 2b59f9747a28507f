"""A machine without a home folder, a place for temporary files or a cache that can be written: one message each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from dsabench import locks
from dsabench.data.cache import cache_folder
from dsabench.errors import DataError, DsabenchError, SpecError
from dsabench.spec.config import load_sweep
from dsabench.spec.run import validate
from dsabench.user_folders import (
    expanded,
    remove_abandoned,
    temporary_file,
    temporary_folder,
    temporary_parent,
)

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
        temporary_folder().__enter__()
    with pytest.raises(DsabenchError, match="no place for temporary files"):
        temporary_file()


def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write the data cache at .*file.* DSABENCH_CACHE$"):
        cache_folder("tokens")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


ABANDONS = """
import os, sys, tempfile
from dsabench import user_folders
tempfile.tempdir = sys.argv[1]
if sys.argv[2] == "before it is locked":
    user_folders.locks.acquire = lambda path, patience: os._exit(9)
with user_folders.temporary_folder() as folder:
    (folder / "runs").mkdir()
    (folder / "runs" / "file").write_text("x")
    os._exit(9)
"""


@pytest.mark.parametrize("moment", ["in use", "before it is locked"])
def test_a_killed_process_leaves_a_folder_that_the_next_one_removes(place: Path, moment: str) -> None:
    subprocess.run([sys.executable, "-c", ABANDONS, str(place), moment], check=False, timeout=60)
    (left,) = place.iterdir()
    if moment == "before it is locked":
        remove_abandoned()
        assert left.exists(), "it may be locked the next moment"
        os.utime(left, (0, 0))
    with temporary_folder() as folder:
        assert list(place.iterdir()) == [folder]
    assert list(place.iterdir()) == []


def test_what_is_in_use_or_not_ours_is_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "dsabench-scratch").mkdir()
    (place / "dsabench-tmp-notes").write_text("mine")
    (place / "elsewhere").mkdir()
    (place / "dsabench-tmp-link").symlink_to(place / "elsewhere")
    another = place / "dsabench-tmp-another"  # machine, with the same folder and locks of its own
    another.mkdir()
    (another / "in-use-on-another").touch()
    for path in place.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    before = sorted(place.rglob("*"))
    with temporary_folder() as folder:
        (folder / "file").touch()
        subprocess.run(
            [sys.executable, "-c", "from dsabench.user_folders import *; remove_abandoned()"],
            check=True, env={**os.environ, "TMPDIR": str(place)},
        )  # fmt: skip
        assert (folder / "file").exists()
    assert sorted(place.rglob("*")) == before
    if hasattr(os, "getuid"):
        subprocess.run([sys.executable, "-c", ABANDONS, str(place), "in use"], check=False, timeout=60)
        after = sorted(place.rglob("*"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 1234567)
            remove_abandoned()
        assert sorted(place.rglob("*")) == after, "somebody else's"


def test_folders_made_at_once_by_many_stay_until_each_is_done(place: Path) -> None:
    """Each looks for abandoned ones while the others are being made."""
    many = (
        "import tempfile, sys; from dsabench.user_folders import *; tempfile.tempdir = sys.argv[1]\n"
        "for i in range(200):\n"
        "    with temporary_folder() as folder: (folder / 'file').touch(); assert (folder / 'file').exists()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", many, str(place)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert list(place.iterdir()) == []


def test_a_file_system_without_locks_has_temporary_folders_that_nobody_removes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, patience_s: float) -> None:
        path.touch()
        raise locks.NoLocksError(38, "no locks")

    monkeypatch.setattr(locks, "acquire", refuse)
    with temporary_folder() as folder:
        remove_abandoned()
        assert folder.is_dir()
        assert temporary_parent(folder / "runs" / "a") == (folder, "")
    assert list(place.iterdir()) == [] and temporary_parent(folder / "runs") is None
