"""The version of dsabench."""

__version__ = "0.4.0"
