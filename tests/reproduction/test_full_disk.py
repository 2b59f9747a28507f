"""A full disk under `dsabench reproduce`: named by its folder, and nothing is promised that does not hold."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from shell import Shell
from stored_pair import contents

from dsabench.engine import checkpoint


def fill(monkeypatch: pytest.MonkeyPatch, code: int, below: Path, name: str) -> None:
    """From now on no file of this name can be written below a folder."""

    def try_to(path: str) -> None:
        if path.startswith(str(below)) and name in path:
            raise OSError(code, os.strerror(code))

    write, save_file = os.write, checkpoint.save_file

    def written(fd: int, data: Any) -> int:
        try_to(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        return write(fd, data)

    def saved(tensors: Any, path: Path) -> None:
        try_to(str(path))
        save_file(tensors, path)

    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(checkpoint, "save_file", saved)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell which file a descriptor is")
@pytest.mark.parametrize("name", ["store.json", "run.json", "metrics.jsonl", "model.safetensors", "index.parquet"])
def test_a_full_temporary_folder_is_named_and_nothing_false_is_promised(
    shell: Shell, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (place := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = contents(store)
    with monkeypatch.context() as patch:
        fill(patch, errno.ENOSPC, place, name)
        code, out, err = shell("reproduce", "dense", "-q")
    assert (code, out) == (2, "")
    assert f"error: {place}/dsabench-tmp-" in err
    assert "the disk of this temporary folder is full (No space left on device), and nothing of it is kept" in err
    assert "TMPDIR" in err and "--into DIR" in err
    assert "resume" not in err and "checkpoint" not in err and "intact" not in err and "--store" not in err
    assert list(place.iterdir()) == [] and contents(store) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell which file a descriptor is")
def test_a_full_disk_of_a_kept_store_promises_what_holds(
    shell: Shell, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fill(patch, errno.ENOSPC, tmp_path / "again", "metrics.jsonl")
        code, _, err = shell("reproduce", "dense", "-q", "--into", str(tmp_path / "again"))
    assert code == 2 and "the disk is full" in err and "run the command again" in err
    assert shell("reproduce", "dense", "-q", "--into", str(tmp_path / "again"))[0] == 0


def test_a_place_that_cannot_keep_the_second_run_is_named_by_its_own_option(shell: Shell, store: Path) -> None:
    (shell.folder / "file").write_text("")
    code, _, err = shell("reproduce", "dense", "--into", "file/again")
    assert code == 2 and "--into DIR" in err and "--store" not in err
