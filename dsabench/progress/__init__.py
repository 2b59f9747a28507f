"""Progress of work: durations in words, the time that is left, and its display on a terminal."""
