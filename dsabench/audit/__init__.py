"""The causality audit: the gate before every training, and the checks of `dsabench audit`."""
