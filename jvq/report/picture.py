"""Figures without a display: how one is made and written."""

from pathlib import Path
from typing import Any

from jvq.core import files


def figure(width: float, height: float) -> Any:
    """A matplotlib figure of that size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # matplotlib is slow to import
    from matplotlib.figure import Figure

    made = Figure((width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(figure: Any, path: Path) -> None:
    """Writes a PNG, whole or not at all, the same bytes for the same figure."""
    with files.replacing(path) as part:
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
