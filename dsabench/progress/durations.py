"""Durations in words."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 hours', '3.5 days', '120 days': in the unit that gives a number from 1.5 on, but for
    seconds."""
    if seconds < 1.5 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 1.5 * DAY:
        return f"{seconds / HOUR:.1f} hours"
    return f"{seconds / DAY:.1f} days" if seconds < 10 * DAY else f"{seconds / DAY:,.0f} days"
