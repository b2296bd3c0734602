"""Drawing a figure and reading it back."""

import re
from xml.etree import ElementTree

import pytest

from jvq.report.figures.canvas import INK

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(tmp_path):
    """``drawn(draw, data)``: the texts of the SVG that it writes: the same bytes each time, whole, small, in ink."""

    def look(draw, data, name="figure.svg"):
        for folder in ("one", "again"):
            (tmp_path / folder).mkdir(exist_ok=True)
            draw(tmp_path / folder / name, data)
            assert [p.name for p in (tmp_path / folder).iterdir()] == [name]
        one, again = ((tmp_path / folder / name).read_bytes() for folder in ("one", "again"))
        assert one == again
        assert len(one) < 300_000
        root = ElementTree.fromstring(one)
        assert root.tag == f"{SVG}svg"
        text = one.decode("utf-8")
        defined = re.findall(r' id="([^"]+)"', text)
        assert len(defined) == len({*defined})
        assert {*re.findall(r'(?:href="#|url\(#)([^")]+)', text)} <= {*defined}
        found = []
        above = {child: parent for parent in root.iter() for child in parent}
        for node in root.iter(f"{SVG}text"):
            style = node.get("style", "") + above[node].get("style", "")  # of mathematics it stands above
            assert re.search(r"fill: (#010203|#ffffff|#0a0a0a)", style), node.text  # the last two: on a colour
            found.append("".join(node.itertext()))
        assert found
        assert INK in text
        return found

    return look
