"""Export: a model whose weights are packed, as files that others read."""

from jvq.export.deployment import Deployment
from jvq.export.packed_file import load, save
from jvq.export.packed_folder import load_folder, save_folder

__all__ = ["Deployment", "load", "load_folder", "save", "save_folder"]
