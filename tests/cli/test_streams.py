"""Standard streams of any encoding, closed, full or left by their reader; and arguments that are no text."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import experiment, finished

from dsabench.cli import app
from dsabench.cli.safe_text import ESCAPES
from dsabench.plain import encodable
from dsabench.spec.run import validate
from dsabench.store import RunRecord

NAMES = "\xe4\xf6\xdf \u5bbd\u5ea6 \U0001f600 \udcff\ud800"
"""Umlauts, wide letters, a character of two surrogates in JSON, and halves that no UTF-8 has."""

FILE = NAMES[:-1]
"""A file name may hold a byte that is no text; the other half of a pair stands for none."""

CODE = "from dsabench.cli.app import main; main()"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep, and a failed run whose texts are hard to encode; the folder that holds the store `l\xe4ger`."""
    folder = tmp_path_factory.mktemp("encodings")
    store = folder / "l\xe4ger"
    experiment(store, lengths=(64,), seeds=(1, 2, 3), evaluations=1)
    name = finished(store, validate({"length": 128, "attention": {"kind": "dense"}}), 4.0, evaluations=1)
    path = store / name / "run.json"
    record = RunRecord.model_validate_json(path.read_bytes())
    spec = {**record.spec, "data": {"source": f"path:{NAMES}"}}
    changes = {
        "status": "failed",
        "error": NAMES,
        "version": NAMES,
        "environment": {"device_name": NAMES},
        "spec": spec,
    }
    path.write_bytes(record.model_copy(update=changes).to_json())
    return folder


COMMANDS = [
    ["runs"],
    ["runs", "--columns", "run_id", "error", "data.source"],
    ["runs", "--json"],
    ["runs", "show", "dense-L128"],
    ["runs", "show", "dense-L128", "--all"],
    ["runs", "show", "dense-L128", "--json"],
    ["runs", "diff", "dense-L64-s1", "dense-L128"],
    ["runs", "diff", "dense-L64-s1", "dense-L128", "--json"],
    ["runs", "export", f"{FILE}.csv"],
    ["compare", "--all"],
    ["compare", "--all", "--json"],
    ["compare", "--all", "--markdown"],
    ["compare", "--all", "--csv"],
    ["plot", "forest", "--out", FILE],
    ["schema", "config"],
    ["guide", "start"],
    ["sweep", "--dry-run", "--device", "cpu", "--json"],
    ["--help"],
]


def bytes_of(words: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, bytes]:
    """What a command writes on a stdout of this encoding, which refuses what it cannot hold."""
    buffer = io.BytesIO()
    out = io.TextIOWrapper(buffer, encoding=encoding, errors="strict")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.argv", ["dsabench", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out.flush()
    return int(ended.value.code or 0), buffer.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_command_escapes_what_stdout_cannot_hold(
    filled: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled)
    monkeypatch.setenv("DSABENCH_STORE", "l\xe4ger")
    documents: dict[str, Any] = {}
    for words in COMMANDS:
        code, written = bytes_of(words, encoding, monkeypatch)
        assert code == 0, words
        text = written.decode(encoding)
        if "--json" in words:
            documents[" ".join(words)] = json.loads(text)
        elif words[:2] in (["runs", "show"], ["runs", "diff"]):
            assert ("\\u5bbd" in text) == (encoding != "utf-8"), "escaped where it must be, and there alone"
            assert ("\xe4" in text) == (encoding != "ascii") and "\\udcff" in text
    source = f"path:{NAMES}"
    assert documents["runs show dense-L128 --json"]["spec"]["data"]["source"] == source, "JSON says it all the same"
    assert encodable(source) in [run["data.source"] for run in documents["runs --json"]]


@given(text=st.text(st.characters(exclude_categories=[])), encoding=st.sampled_from(["ascii", "cp1252", "utf-8"]))
@settings(deadline=None)
def test_escaped_json_is_the_same_json(text: str, encoding: str) -> None:
    written = json.dumps([text], ensure_ascii=False).encode(encoding, ESCAPES)
    assert json.loads(written.decode(encoding)) == json.loads(json.dumps([text]))


def run(words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of a shell, in which $DSA is the command."""
    env = {**os.environ, "PYTHONWARNINGS": "error", "DSA_CODE": CODE, **environment}
    words = words.replace("$DSA", f'"{sys.executable}" -c "$DSA_CODE"')
    return subprocess.run(["bash", "-c", words], capture_output=True, env=env, cwd=folder, timeout=120, check=False)


FULL = b"error: stdout cannot be written: No space left on device\n"
CLOSED = b"note: stdout is closed; results are not shown\n"

STREAMS: dict[str, tuple[str, int, bytes]] = {
    "full": ("$DSA runs >/dev/full", 2, FULL),
    "full, help": ("$DSA --help >/dev/full", 2, FULL),
    "full, json": ("$DSA runs --json >/dev/full", 2, FULL),
    "full, guide": ("$DSA guide >/dev/full", 2, FULL),
    "closed": ("$DSA runs >&-", 0, CLOSED),
    "closed, json": ("$DSA runs --json >&-", 0, CLOSED),
    "closed, a mistake": ("$DSA runs --limit 0 >&-", 2, CLOSED),
    "reader gone": ("set -o pipefail; $DSA runs --json | true", 141, b""),
    "stderr full": ("$DSA runs --sort nothing 2>/dev/full", 2, b""),
    "stderr closed": ("$DSA runs --sort nothing 2>&-", 2, b""),
    "stdin closed": ("$DSA runs show dense-L128 <&- >/dev/null", 0, b""),
    "all closed": ("$DSA runs <&- >&- 2>&-", 0, b""),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_cannot_be_used_gives_one_message_and_its_exit_code(name: str, filled: Path) -> None:
    words, code, message = STREAMS[name]
    done = run(words, filled, DSABENCH_STORE="l\xe4ger")
    assert (done.returncode, b"Traceback" in done.stderr) == (code, False), done.stderr
    assert message in done.stderr and (message or name != "reader gone" or not done.stderr)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_process_without_unicode_escapes_too(environment: dict[str, str], filled: Path) -> None:
    done = run("$DSA runs show dense-L128 --json", filled, **environment, PYTHONUTF8="0", DSABENCH_STORE="l\xe4ger")
    assert done.returncode == 0 and done.stdout.isascii(), done.stderr
    assert json.loads(done.stdout)["error"] == NAMES


BYTES = [b"\xff", b"\xed\xa0\x80", b"x\xc3", b"\xe4\xf6.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere arguments are text")
@pytest.mark.parametrize(
    "words",
    [
        ["runs", "--where"], ["runs", "--sort"], ["runs", "--columns"], ["runs", "--sweep"], ["runs", "show"],
        ["runs", "export"], ["runs", "--store"], ["compare", "--metric"], ["compare", "--baseline"], ["plot"],
        ["plot", "forest", "--out"], ["guide"], ["export", "--to"], ["schema"], ["reproduce"], ["no-such"],
        ["train", "--config"], ["train", "--set"], ["train", "--attention"], ["sweep", "--dry-run", "--lengths"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_argument_that_is_no_text_is_one_message_or_a_file(
    words: list[str], filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(filled)
    monkeypatch.setenv("DSABENCH_STORE", "l\xe4ger")
    for value in map(os.fsdecode, BYTES):
        monkeypatch.setattr("sys.argv", ["dsabench", *words, value])
        with pytest.raises(SystemExit) as ended:
            app.main()
        seen = capsys.readouterr()
        assert ended.value.code in (0, 2), (words, value)
        if ended.value.code:
            assert re.search(r"^error: |Error: |Invalid value", seen.err, re.M), seen.err
