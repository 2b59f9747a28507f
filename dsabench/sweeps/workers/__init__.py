"""Runs trained by worker processes, one for each device of this machine."""
