"""The version of dsabench."""

__version__ = "0.5.0"
