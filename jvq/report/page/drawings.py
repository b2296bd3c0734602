"""Figures and pictures of a run's folder, as they stand inside a page."""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

INK = re.compile("#010203", re.IGNORECASE)  #: the colour of text and axes in a figure: the page's own takes its place
DROPPED = {"script", "style", "metadata", "foreignObject", "title", "desc", "animate", "set"}
HREF = "{http://www.w3.org/1999/xlink}href"
REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")]*)['\"]?\s*\)")
IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]*")
GROUPS = {
    "ranges": "Ranges and outliers",
    "groups": "Groups",
    "weights": "Weights and their bins",
    "attention": "Attention",
    "errors": "Errors",
    "images": "The most damaged images",
    "front": "What it cost",
}
PICTURES = {  # by the beginning of a file's name; the longest that fits counts
    "allocation": "Number of groups of every operand (above), and the divergence of each candidate (below).",
    "attention": "Attention of the first image: the float model, then quantised ones, and the order of their rows.",
    "front": "Score against bit-operations of one image, with the Pareto front.",
    "groups": "Above, what is grouped, by its range, coloured by group; below, the objective of k-means by iteration.",
    "groups_error": "Divergence from the float model against the number of groups.",
    "maps": "Maps of some images, as each row's model makes them.",
    "training": "Above, what was logged by step; below, weights in units of codes, with the boundaries of the bins.",
    "widths": "Sensitivity against size (left), and the width of each module (right).",
    "widths_and_groups": "Width (above) and number of groups (below) of every product.",
}


class Drawing(NamedTuple):
    """A figure of a page: its SVG (``body``), or its PNG as a ``data:`` address (``source``), or why it is missing."""

    title: str
    caption: str
    group: str
    body: Markup = Markup("")
    source: str = ""
    missing: str = ""


def drawings(report: Mapping[str, Any], workdir: Path) -> dict[str, list[Drawing]]:
    """By their group, the figures that the report names and then its pictures."""
    found: dict[str, list[Drawing]] = {}
    for i, figure in enumerate(report.get("figures") or []):
        drawn = opened(workdir, figure["file"], f"figure{i}", figure.get("title", ""))
        drawn = drawn._replace(caption=figure.get("caption", ""))
        group = GROUPS.get(figure.get("group", ""), figure.get("group", "") or "Figures")
        found.setdefault(group, []).append(drawn._replace(group=group))
    for i, name in enumerate(report.get("pictures") or []):
        begin = max((x for x in PICTURES if name.startswith(x)), key=len, default="")
        drawn = opened(workdir, name, f"picture{i}", name)
        found.setdefault("Pictures", []).append(drawn._replace(caption=PICTURES.get(begin, ""), group="Pictures"))
    return found


def opened(workdir: Path, name: str, prefix: str, title: str) -> Drawing:
    """The file ``name`` of the folder; where it cannot be shown, a drawing that says so."""
    drawn = Drawing(title, "", "")
    path = workdir / name
    if not path.resolve().is_relative_to(workdir.resolve()):
        return drawn._replace(missing=f"{name} is not in the folder of the run and is left out.")
    try:
        content = path.read_bytes()
        if path.suffix == ".svg":
            return drawn._replace(body=inlined(content.decode("utf-8"), prefix, title))
    except OSError as error:
        return drawn._replace(missing=f"{name} cannot be read: {error.strerror}.")
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        return drawn._replace(missing=f"{name} is not an SVG that can be read: {error}.")
    if not content.startswith(b"\x89PNG"):
        return drawn._replace(missing=f"{name} is not a PNG.")
    return drawn._replace(source=f"data:image/png;base64,{base64.b64encode(content).decode()}")


def inlined(text: str, prefix: str, title: str) -> Markup:
    """An SVG for the inside of a page: its ids begin with ``prefix``, its ink is the page's, nothing in it is active.

    What could run or fetch something is left out, and ids that nothing refers to: matplotlib names every group.
    """
    root = ElementTree.fromstring(text)
    if _local(root.tag) != "svg":
        raise ElementTree.ParseError(f"it begins with <{_local(root.tag)}>")
    used = {m for e in root.iter() for v in e.attrib.values() for m in REFERENCE.findall(v)}
    used |= {v[1:] for e in root.iter() for k, v in e.attrib.items() if k in (HREF, "href") and v.startswith("#")}
    width = root.get("width", "")
    _clean(root, prefix, used)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title, "class": "figure"}
    if match := re.fullmatch(r"([\d.]+)(pt|px)?", width):
        pixels = float(match[1]) * (4 / 3 if match[2] == "pt" else 1)
        root.set("style", f"--width: {pixels:.0f}px")
    return Markup(INK.sub("currentColor", ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)))


def _clean(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Makes an element and those in it fit for a page, in place."""
    element.tag = _local(element.tag)
    kept = {}
    for name, value in element.attrib.items():
        name = "href" if name == HREF else name
        if name.startswith("{") or name.lower().startswith("on"):
            continue  # of other namespaces; handlers of events
        if name == "id":
            value = f"{prefix}-{value}" if value in used else ""
        elif name == "href":
            value = f"#{prefix}-{value[1:]}" if value.startswith("#") else value if IMAGE.fullmatch(value) else ""
        else:
            value = REFERENCE.sub(lambda m: f"url(#{prefix}-{m[1]})", value)
            if re.search(r"url\(\s*['\"]?(?!#)|@import|javascript:|expression\(", value, re.IGNORECASE):
                continue  # it would fetch something
        if value:
            kept[name] = value
    element.attrib.clear()
    element.attrib.update(kept)
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) in DROPPED:
            _remove(element, child)
        else:
            _clean(child, prefix, used)


def _remove(parent: ElementTree.Element, child: ElementTree.Element) -> None:
    parent.remove(child)  # with the text behind it, which in an SVG is blank


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
