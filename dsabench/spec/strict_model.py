"""The base of every spec: frozen, strict pydantic models whose field docstrings are their documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dsabench.plain import EXACT

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Formerly:
    """Mark of a field that came later, or whose default was corrected; see dsabench.spec.former_values."""

    value: Any
    """What every run had before."""


class Spec(BaseModel):
    """Base of every spec: unknown fields are refused, instances are immutable, values are not coerced."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs (field with a default, field that may stand in its place). Giving the second clears the default of the
    first; an override of either clears the other; both or neither is an error."""

    @model_validator(mode="before")
    @classmethod
    def _second_clears_the_firsts_default(cls, values: Any) -> Any:
        if isinstance(values, dict):
            cleared = {one: None for one, other in cls.alternatives if values.get(other) is not None}
            return {**cleared, **values}
        return values

    @model_validator(mode="after")
    def _whole_numbers_are_exact(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) > EXACT:
                raise ValueError(f"{name} = {str(value)[:30]} is too large; at most 2^53 = {EXACT} is accepted")
        return self

    @model_validator(mode="after")
    def _one_of_each_pair(self) -> Self:
        for one, other in self.alternatives:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} say the same thing in two ways; keep one and leave the other out")
            if getattr(self, one) is None and getattr(self, other) is None:
                raise ValueError(f"{one} and {other} are both null; one of them must say it")
        return self
