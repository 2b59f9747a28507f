"""Where the time of one training step goes: `measure` runs and times it, `trace` and `split` attribute it."""
