"""Methods: one paper a file. Each has ``Options``, ``recipe``, ``fit``, ``baselines`` and ``protocol``."""

from types import ModuleType

from jvq.methods import bivit, igq, liu21, minmax, supervised, vvtq

METHODS: dict[str, ModuleType] = {
    "bivit": bivit,
    "igq": igq,
    "liu21": liu21,
    "minmax": minmax,
    "supervised": supervised,
    "vvtq": vvtq,
}

__all__ = ["METHODS", "bivit", "igq", "liu21", "minmax", "supervised", "vvtq"]
