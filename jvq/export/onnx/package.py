"""The optional packages, imported where they are used."""

import importlib
from typing import Any


def onnx() -> Any:
    """The package onnx; ``ValueError`` where it is not installed."""
    return _imported("onnx")


def onnxruntime() -> Any:
    """The package onnxruntime; ``ValueError`` where it is not installed."""
    return _imported("onnxruntime")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"export: ONNX needs the package {name}: pip install 'jvq[onnx]'") from None
