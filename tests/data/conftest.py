"""The embedded test images, decoded once, and small folders of images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jvq.data import Fashion

Paint = Callable[..., Path]


@pytest.fixture(scope="session")
def fashion() -> Fashion:
    """The 10,000 test images of the embedded set."""
    return Fashion("test")


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """``paint("a/b.png", value)`` writes an image of one RGB value under ``tmp_path`` and returns its path."""

    def write(name: str, value: int | tuple[int, int, int] = 0, size: tuple[int, int] = (4, 6)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.broadcast_to(np.array(value, np.uint8), (*size, 3))
        Image.fromarray(np.ascontiguousarray(image)).save(path)
        return path

    return write
