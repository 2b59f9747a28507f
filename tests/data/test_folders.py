"""Folders of every shape: regular files alone, hidden ones left out, and a glob of a folder is the folder."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.data import fingerprint, prepare
from dsabench.data.sources import folder as folder_module
from dsabench.data.sources.source import Source, open_source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def source(path: str | Path) -> Source:
    return open_source(DataSpec(source=f"path:{path}", tokenizer="bytes"), print)


NAMES = st.sampled_from(["a", "b.txt", "c", "d.md", ".h", ".i.txt", "_x"])
FILES = st.lists(st.tuples(st.lists(NAMES, max_size=2), NAMES), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(files=FILES)
def test_a_folder_and_a_glob_of_it_are_one_corpus(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[list[str], str]]
) -> None:
    root = tmp_path_factory.mktemp("any") / "root"
    root.mkdir()
    wanted = {}
    for i, (folders, name) in enumerate(files):
        path = root.joinpath(*folders, name + ".txt")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"text {i}")
        except OSError:  # a file stands where a folder is to be
            continue
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            wanted[path] = path.relative_to(root).as_posix()
    if not wanted:
        for where in (root, root / "*"):
            with pytest.raises(DataError, match=r"nothing to read there|no file matches"):
                source(where)
        return
    whole, globbed, deep = source(root), source(root / "*"), source(root / "**" / "*")
    assert whole.files == globbed.files == deep.files == tuple(sorted(wanted, key=Path.as_posix))
    assert whole.labels == globbed.labels == deep.labels == tuple(wanted[path] for path in whole.files)


def test_the_fingerprints_of_a_folder_and_a_glob_of_it_agree(folder: Folder, tmp_path: Path) -> None:
    files = {f"{name}.txt": f"text of {name} " * 20 for name in ("a", "b", "sub/c", "sub/deep/d", ".hidden", ".git/e")}
    specs = [folder(files, only=only) for only in ("", "*", "**")]
    assert len({fingerprint(spec)["corpus"] for spec in specs}) == 1
    visible = folder({name: text for name, text in files.items() if not name.startswith(".")}, name="visible")
    assert fingerprint(visible) == fingerprint(specs[0])


def test_hidden_files_are_left_out_and_told(folder: Folder) -> None:
    files = {"a.txt": "one", "b.txt": "two", ".c.txt": "three", "._a.txt": "\0\0", "sub/.d.txt": "four", ".e": "five"}
    data = prepare(folder(files))
    assert sorted([*data.train.names, *data.val.names]) == ["a.txt", "b.txt"]
    assert "hidden files not read: ._a.txt, .c.txt, .e, sub/.d.txt" in data.notes
    named = folder({}, only=".c.txt")
    assert open_source(named, print).labels == (".c.txt",), "a hidden file that is named is meant"


@posix
@pytest.mark.parametrize("where", ["", "*", "*.txt"])
def test_what_is_no_regular_file_is_told_and_left(folder: Folder, tmp_path: Path, where: str) -> None:
    spec = folder({"a.txt": "one", "b.txt": "two", "c.txt/d.txt": "three"}, only=where)
    root = tmp_path / "corpus"
    os.mkfifo(root / "pipe.txt")  # would be waited for without end
    (root / "gone.txt").symlink_to(root / "nowhere")
    (root / "device.txt").symlink_to("/dev/null")
    unix = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(root)  # a socket's path may have 100 letters
    try:
        unix.bind("socket.txt")
    finally:
        os.chdir(here)
        unix.close()
    data = prepare(spec)
    assert sorted([*data.train.names, *data.val.names]) == ["a.txt", "b.txt", "c.txt/d.txt"]
    (told,) = (note for note in data.notes if note.startswith("only regular files are read: "))
    for name, kind in (("pipe", "a named pipe"), ("socket", "a socket"), ("device", "a device"), ("gone", "a link to")):
        assert f"{name}.txt is {kind}" in told


@posix
def test_a_pipe_or_a_device_that_is_named_is_refused(folder: Folder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, kind in ((tmp_path / "pipe.txt", "a named pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(DataError, match=rf"{path} is {kind}; accepted: a regular file, a folder or a glob"):
            source(path)
        with pytest.raises(DataError, match=rf"data\.tokenizer = '{path}': {path} is {kind}"):
            fingerprint(folder({"a.txt": "one", "b.txt": "two"}, tokenizer=str(path)))


def test_linked_folders_are_left_out_and_told(folder: Folder, tmp_path: Path) -> None:
    folder({"x.txt": "elsewhere"}, name="other")
    for only in ("", "*"):
        spec = folder({"a.txt": "one", "b.txt": "two"}, only=only)
        link = tmp_path / "corpus" / "link"
        if not link.exists():
            link.symlink_to(tmp_path / "other")
        data = prepare(spec)
        assert sorted([*data.train.names, *data.val.names]) == ["a.txt", "b.txt"]
        assert "hidden and linked folders not read: link" in data.notes
    assert source(link).labels == ("x.txt",), "a linked folder that is named is meant"


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("one")
    scan = os.scandir

    def closed(path: str | Path) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(folder_module.os, "scandir", closed)
    with pytest.raises(DataError, match=r"closed: cannot be read: Permission denied"):
        source(tmp_path)
