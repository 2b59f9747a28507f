"""Training: one loop for every attention variant and device."""
