"""The time of one training step by part: `profiler` runs and traces it, `trace` and `attribution` attribute it."""
