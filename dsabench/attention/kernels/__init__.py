"""The mathematics of sparse attention: the specification, and faster implementations of the same functions."""
