"""Methods: one paper a file. Each has ``Options``, ``recipe``, ``fit``, ``baselines`` and ``protocol``."""

from types import ModuleType

from jvq.methods import igq, minmax, supervised

METHODS: dict[str, ModuleType] = {"igq": igq, "minmax": minmax, "supervised": supervised}

__all__ = ["METHODS", "igq", "minmax", "supervised"]
