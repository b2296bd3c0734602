"""The API reference as HTML, generated from the docstrings of every module with pdoc.

    pip install -e '.[docs]'
    python docs/build_api.py OUT

OUT is made, or filled again where an earlier reference lies in it; OUT/jvq.html is where to begin. What would be a
warning is an error. Of kernels the public functions are shown, not the devices' code.
"""

import importlib
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

WITHIN = ("jvq.kernels.",)  #: packages of which only what they export is shown
NONE = ("jvq.assets", "jvq.bench.torch_vit")  #: no code; needs torch, which the reference shall not
START = "jvq.html"
OTHERS = ("absl", "flax", "google", "jax", "orbax", "tensorflow_datasets")  #: whose own warnings are none of ours


def modules(package: str = "jvq") -> Iterator[str]:
    """The package, and every public module below it."""
    yield package
    if any(package.startswith(name) for name in WITHIN):
        return
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if found.name in NONE or found.name.rpartition(".")[2].startswith("_"):
            continue
        if found.ispkg:
            yield from modules(found.name)
        else:
            yield found.name


def build(out: Path) -> list[str]:
    """Writes the pages into ``out``; the modules that have one. ``ValueError`` where other things lie in ``out``."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / START).is_file())):
        raise ValueError(f"{out} holds other things than a reference: name a new folder")
    import pdoc
    import pdoc.render

    pdoc.render.configure(docformat="restructuredtext")
    names = [*modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # a package without __all__ brings its modules along; those with one do not
        warnings.filterwarnings("ignore", "The module specification", UserWarning)
        for name in NONE:
            warnings.filterwarnings("ignore", rf"Couldn't import {re.escape(name)}\b")
        for package in OTHERS:
            warnings.filterwarnings("ignore", module=rf"{package}\b")
        pdoc.pdoc(*names, *(f"!{re.escape(name)}" for name in NONE), output_directory=out)
    return names


def main(argv: list[str]) -> None:
    """``python docs/build_api.py OUT``."""
    if len(argv) != 2 or argv[1].startswith("-"):
        sys.exit((__doc__ or "").strip())
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # modules are imported, nothing is computed
    out = Path(argv[1])
    try:
        names = build(out)
    except ValueError as error:
        sys.exit(f"build_api: {error}")
    print(f"{len(names)} modules: {out / START}")


if __name__ == "__main__":
    main(sys.argv)
