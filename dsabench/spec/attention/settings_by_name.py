"""The settings class of an attention by its name, and the name that a mapping of settings means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsabench.errors import SpecError

if TYPE_CHECKING:
    from dsabench.spec.attention.attention_spec import AttentionSpec

HYBRID = "hybrid"
"""The kind of a stack whose layers differ."""


def kind_of(values: Mapping[str, Any]) -> Any:
    """The kind that the settings of an attention mean: `hybrid` where they list layers and name none, else `dsa`."""
    return values.get("kind", HYBRID if "layers" in values else "dsa")


def settings_class(kind: Any, origin: str = "") -> type[AttentionSpec]:
    """The settings class of an attention by name. Raises SpecError that begins with `origin` and says what there is.

    A built-in one needs no torch; a plugin's is asked of the registry.
    """
    from dsabench.spec.attention import BUILT_IN  # which is made of all settings, and so of the hybrid's

    if isinstance(kind, str) and kind in BUILT_IN:
        return BUILT_IN[kind]
    from dsabench.attention.registry import spec_class

    try:
        return spec_class(kind)
    except SpecError as error:
        raise SpecError(f"{origin}{error}") from error
