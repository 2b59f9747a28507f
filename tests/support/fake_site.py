"""A folder of installed distributions that a test makes up, as pip would leave them."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Iterable
from pathlib import Path


def hashed(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


class Site:
    """A folder of installed distributions, which are found before those of this Python."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(
        self,
        name: str,
        files: dict[str, str | bytes] | None = None,
        *,
        version: str = "1.0",
        requires: Iterable[str] = (),
        extra_record: Iterable[str] = (),
        shuffle: random.Random | None = None,
    ) -> Path:
        """Write the files and a dist-info with their RECORD, in the order given or shuffled. Returns the dist-info."""
        lines = list(extra_record)
        for label, content in (files or {}).items():
            data = content.encode() if isinstance(content, str) else content
            path = self.root / label
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            lines.append(f"{label},{hashed(data)},{len(data)}")
        if shuffle:
            shuffle.shuffle(lines)
        info = self.root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        (info / "RECORD").write_text("".join(f"{line}\n" for line in lines))
        return info
