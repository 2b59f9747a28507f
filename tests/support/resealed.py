"""Records edited by hand as tests need them: sealed again, as if written so, or without a seal, as before 0.3."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsabench.store.atomic_folder import whole
from dsabench.store.seals import CHECKPOINT_SEAL, file_seal, record_digest


def edit(path: Path, **changes: Any) -> None:
    """Change top-level fields of the JSON record in `path`, and seal it again."""
    write(path, {**json.loads(path.read_bytes()), **changes})


def replace(path: Path, old: str, new: str) -> None:
    """Replace text in the record in `path`, and seal it again."""
    text = path.read_text(encoding="utf-8")
    assert old in text, old
    write(path, json.loads(text.replace(old, new)))


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as the record in `path`; one with a seal gets its own digest."""
    document = dict(document)
    if document.get("seal"):
        document["seal"] = {**document["seal"], "digest": record_digest(document)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def revise(folder: Path, **summary: Any) -> None:
    """Give a finished run other values in its summary, and in its last evaluation where that has them."""
    path, metrics = folder / "run.json", folder / "metrics.jsonl"
    document = json.loads(path.read_bytes())
    *lines, last = metrics.read_text(encoding="ascii").splitlines()
    evaluation = json.loads(last)
    evaluation |= {name: value for name, value in summary.items() if name in evaluation}
    metrics.write_text("".join(f"{line}\n" for line in (*lines, json.dumps(evaluation))), encoding="ascii")
    write(path, {**document, "summary": document["summary"] | summary})
    if document["seal"]["files"] is not None:
        reseal(folder)


def rewrite(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as the record of a run, sealed, and its summary's values into the last evaluation too."""
    write(path, document)
    if document["status"] == "done":
        revise(path.parent, **document["summary"])


def reseal(folder: Path) -> None:
    """Seal a run whose files were edited, as its writer would have."""
    path = folder / "run.json"
    document = json.loads(path.read_bytes())
    files = {"metrics.jsonl": folder / "metrics.jsonl"}
    if (saved := whole(folder)) is not None:
        files |= {f"checkpoint/{file.name}": file for file in saved.iterdir()}
    seals = {name: file_seal(file).model_dump() for name, file in files.items() if file.exists()}
    write(path, {**document, "seal": {"digest": "", "files": seals}})


def unseal(folder: Path) -> None:
    """Make a run one of dsabench 0.2, which sealed nothing."""
    path = folder / "run.json"
    document = json.loads(path.read_bytes())
    document.pop("seal", None)
    path.write_text(json.dumps({**document, "version": "0.2.0"}, indent=1) + "\n", encoding="utf-8")
    for seal in folder.glob(f"checkpoint*/{CHECKPOINT_SEAL}"):
        seal.unlink()
