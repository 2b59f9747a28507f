"""One run: what is written is what is read, by its one writer, whatever else is in the folder."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsabench.errors import StoreError
from dsabench.store import (
    SCHEMA_VERSION,
    RunBusyError,
    RunDoneError,
    RunWriter,
    find_checkpoint,
    find_run,
    load_metrics,
    load_runs,
    read_metrics,
    read_run,
)

from .conftest import SPEC, SUMMARY, Runs
