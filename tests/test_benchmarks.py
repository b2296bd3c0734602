"""Benchmarks run, on a small model; what they measure is not judged here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_calibration_is_measured_beside_a_forward_pass():
    command = [sys.executable, ROOT / "benchmarks/calibration.py", "--size=Ti/16", "--images=4", "--rounds=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert re.search(r"compiled: forward [\d.]+ s, fitting [\d.]+ s = [\d.]+ times", done.stdout)
    assert re.search(r"peak memory [\d.]+ GiB", done.stdout)
