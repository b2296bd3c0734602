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
    assert re.search(r"without it: forward [\d.]+ s, fitting [\d.]+ s = [\d.]+ times", done.stdout)
    assert re.search(r"peak memory [\d.]+ GiB", done.stdout)


def ran(*command):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / command[0], *command[1:]],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_quantised_step_is_measured_beside_a_float_step():
    said = ran("training.py", "--batch=16", "--rounds=2")
    for name in ("float", "quantised", "distilled"):
        assert re.search(rf"{name}: \d+ ms a step = [\d.]+ times float; 1 executable", said)


@pytest.mark.slow
def test_reading_labels_is_measured_beside_a_training_step():
    said = ran("soft_labels.py", "--images=64", "--steps=1", "--reads=5", "--rounds=1")
    assert re.search(r"reading / training = [\d.]+; both / training = [\d.]+", said)


@pytest.mark.slow
def test_products_of_one_bit_are_measured_beside_float_ones():
    assert re.search(r"float / packed = [\d.]+", ran("binary_matmul.py", "--rounds=1", "--calls=1"))


@pytest.mark.slow
def test_input_is_measured_beside_a_model():
    said = ran("input.py", "--images=3000", "--model=Ti/16", "--read=80", "--batch=8", "--rounds=1", "--workers=1")
    assert re.search(
        r"in int8: [\d.]+ images/s.*\n +read / computed = [\d.]+ in 4 threads, [\d.]+ in 1 processes", said
    )


@pytest.mark.slow
def test_a_plan_is_printed():
    assert re.search(r"simulated / closed form [\d.]+", ran("scale.py", "--model=vit_s", "--images=32"))
