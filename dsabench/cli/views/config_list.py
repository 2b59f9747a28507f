"""The list of shipped configs. Loads no rich: this is a newcomer's command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dsabench.spec.config import DEFAULT_CONFIG, about


def document(configs: Mapping[str, Path]) -> list[dict[str, str]]:
    """Name, meaning and file of each, for `--json`."""
    return [{"name": name, "about": about(path), "path": str(path)} for name, path in configs.items()]


def print_configs(configs: Mapping[str, Path]) -> None:
    """A line for each, and how to use one. At most 80 columns."""
    width = max(map(len, configs))
    for name, path in configs.items():
        print(f"{name:{width}}  {about(path)}")
    print(f"\nUse one: dsabench sweep --config NAME (without --config: {DEFAULT_CONFIG})")
    print("Change one: dsabench configs NAME > my.yaml, then --config my.yaml")
