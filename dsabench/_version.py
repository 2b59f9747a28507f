"""The version of dsabench."""

__version__ = "0.1.0"
