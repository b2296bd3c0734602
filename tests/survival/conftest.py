"""The folder of these tests is on the path, also in the processes that they start."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def server():
    """Which starts every run of a file, with what runs import already imported."""
    import killing

    return killing.Server()
