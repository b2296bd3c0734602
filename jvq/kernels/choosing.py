"""Which implementation of a kernel computes a product: by name, or the fastest that the device has."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jvq.core.errors import nearest

DEVICES = {"pallas_tpu": ("tpu",), "pallas_gpu": ("gpu", "cuda")}  #: backends that an implementation is written for


def run(op: str, impl: str, implementations: Mapping[str, Callable[..., Any]], /, **arguments: Any) -> Any:
    """``implementations[impl](**arguments)``; for ``"auto"`` the device's own, and XLA's where that one declines.

    Raises ``ValueError`` for a name that is not there and ``NotImplementedError`` where the implementation asked for
    declines, or is written for another device: a named one never falls back.
    """
    backend = jax.default_backend()
    if impl == "auto":
        for name, devices in DEVICES.items():
            if name in implementations and backend in devices:
                try:
                    return implementations[name](**arguments)
                except NotImplementedError:
                    break
        return implementations["xla"](**arguments)
    if impl not in implementations:
        raise ValueError(f"{op} has no implementation '{impl}'{nearest(impl, ('auto', *implementations))}")
    if backend not in DEVICES.get(impl, (backend,)):
        raise NotImplementedError(f"{op}: '{impl}' runs on {DEVICES[impl][0]}, this process has {backend}")
    return implementations[impl](**arguments)
