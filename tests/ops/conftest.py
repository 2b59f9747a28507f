"""Kernels run in Triton's interpreter here."""

from __future__ import annotations

from interpreter import quicken

quicken()
