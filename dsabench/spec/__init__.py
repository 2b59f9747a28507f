"""Specs of runs and sweeps: fields, configs, overrides, identity."""
