"""How far work has come: durations in words, the time that is left, and its display on a terminal."""
