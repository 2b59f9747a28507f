"""The version of dsabench."""

__version__ = "0.3.0"
