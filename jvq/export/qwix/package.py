"""The optional package, imported where it is used."""

import importlib
from typing import Any


def qwix() -> Any:
    """The package qwix; ``ValueError`` where it is not installed."""
    try:
        return importlib.import_module("qwix")
    except ImportError:
        raise ValueError("export: this needs the package qwix: pip install 'jvq[qwix]'") from None
