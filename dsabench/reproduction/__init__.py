"""Training a stored run again, and the differences between two runs."""
