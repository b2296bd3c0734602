"""The page of a run: one file that needs nothing else, says what the report says, and cannot be broken by a name."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from jvq.report import cost_cells, html, markdown, row_cells, site_cells, write
from jvq.report.page import verdict
from jvq.report.page.drawings import inlined
from jvq.report.page.run import headline, polyline
from jvq.report.page.sites import ends, length, sensitivity, site_grid

VOID = {"meta", "link", "img", "input", "br"}
HOSTILE = "</script><script>alert(1)</script><img src=http://x.invalid/ onerror=alert(1)>\"'&amp;<!--]]>{{ 7 * 7 }}"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SVG = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt"
 viewBox="0 0 72 36"><metadata>made by</metadata><defs><style type="text/css">*{color: red}</style>
 <clipPath id="c"><rect width="9" height="9"/></clipPath><path id="glyph" d="M 0 0"/></defs>
 <g id="figure_1" clip-path="url(#c)"><text style="fill: #010203">q &lt; k</text>
 <use xlink:href="#glyph" stroke="#010203" fill="#112233"/></g></svg>"""


class Page(HTMLParser):
    """What a page consists of; fails where a tag is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.words = [], Counter(), [], [], []
        self.scripts, self.styles, self.tables = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open[-1:] == ["style"]:
            self.styles.append(data)
        else:
            self.words.append(data)
            if {"td", "th"} & {*self.open}:
                self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def cells(self):
        return [tuple(row) for table in self.tables for row in table]

    @property
    def data(self):
        return json.loads(next(text for kind, text in self.scripts if kind == "application/json"))


def contained(page):
    """Fails where the page would ask for anything, or could be made to run something."""
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert re.match(r"data:|#", value), (tag, name, value)
        if name not in ("title", "aria-label", "alt", "content", "placeholder"):
            assert not re.search(r"url\((?!#)", value or ""), (tag, name, value)
    for style in page.styles:
        assert not re.search(r"url\(|@import|https?:", style)
    assert not {"iframe", "object", "embed", "base", "form", "foreignobject"} & {*page.tags}
    assert len(page.ids) == len({*page.ids})
    used = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert {*used} <= {*page.ids}


def test_a_page_says_what_the_report_says(report, tmp_path):
    report["warnings"] = ["2 images could not be read"]
    page = Page(html(report, tmp_path))
    contained(page)
    assert page.data == report
    rows = page.cells
    assert all(row_cells(row) in rows and cost_cells(row) in rows for row in report["rows"])
    for address, site in report["sites"].items():
        row = next(row for row in rows if row[0] == address)
        assert sorted(filter(None, row)) == sorted(filter(None, (*site_cells(address, site), site["letters"])))
    known = [report["command"], "igq on tiny", "200 images of npz (test), seed 3", "0.10.2", "the formula"]
    known += [text for pair in report["protocol"].items() for text in pair] + report["warnings"]
    assert [text for text in known if text not in page.text] == []
    assert page.tags["h1"] == page.tags["main"] == page.tags["nav"] == 1


def test_every_part_of_the_markdown_is_on_the_page(report, tmp_path):
    sites = {"patch.x": {"groups": 8, "candidates": [4, 8], "kl": [0.25, 0.5], "cost": [1, 2]}}
    mean = {"gain": 0.1, "low": 0.05, "high": 0.2, "seeds": 1, "of": 1}
    report |= {
        "allocation": dict(budget="bops", limit=12345, spent=12000, mean_groups=6.0, kl=0.5, sites=sites),
        "joint": dict(limit=99, spent=98, sites={"patch": {"bits": 4, "groups": None, "kl": 0.5, "bops": 2000000}}),
        "mixed": dict(
            limit=9, target=4, size=8, unit="nats", candidates=[3, 5],
            modules={"block00/mlp": {"bits": 5, "loss": [0.5, 0.25], "parameters": 12}},
        ),
        "operations": {"lines": ["exact: 49"], "stored": {"kernels": 2, "plain": 64, "packed": 2}},
        "search": {"patch": dict(left=[0.5, 0.25], right=0.75, score=0.9, start=0.8, gain=1.0, rounds=3)},
        "order": [{"width": "W4A4", "worse": "minmax", "better": "igq", "kl": mean}],
    }  # fmt: skip
    page, text = Page(html(report, tmp_path)), markdown(report)
    contained(page)
    for line in text.splitlines():
        if (
            line.startswith("| ")
            and "---" not in line
            and not line.startswith(("| patch.x | Uni", "| block00/mlp/fc1.x"))
        ):
            cells = tuple(re.sub(r"\*\*(.*)\*\*", r"\1", cell.strip()) for cell in line[2:-2].split(" | "))
            assert cells in page.cells or "quantiser" in line, line
        if line.startswith(("## ", "- ")) and ": " not in line and line not in ("## Seconds",):
            assert line.lstrip("#- ") in page.text, line
    assert "Budget: 12,345 bit-operations at run time" in page.text
    assert ("td", "class", "number chosen") in page.attributes


def hostile(x):
    """The report with every text but the names of its keys replaced; two rows keep the names that pages look for."""
    if isinstance(x, dict):
        return {HOSTILE + k if k in ("weights", "patch.x", "fit") else k: hostile(v) for k, v in x.items()}
    if isinstance(x, list):
        return [hostile(v) for v in x]
    return HOSTILE + x if isinstance(x, str) and x not in ("float", "minmax") else x


def test_no_text_of_a_report_becomes_markup(report, tmp_path):
    report["warnings"], report["pictures"] = ["w"], ["no.png"]
    report["figures"] = [{"file": "f.svg", "title": "t", "caption": "c", "group": "g"}]
    plain = Page(html(report, tmp_path))
    bad = hostile(report)
    page = Page(html(bad, tmp_path))
    contained(page)
    assert page.data == bad
    assert page.tags - Counter(span=99) == plain.tags - Counter(span=99)  # of which a command has one a word
    assert [kind for kind, _ in page.scripts] == ["application/json", None]
    assert page.scripts[1] == plain.scripts[1]
    assert HOSTILE + "igq on " + HOSTILE + "tiny" in page.text
    assert " 49 " not in page.text
    assert html({**report, "command": "\u2028\u0000 \x1b[1m"}, tmp_path)


def test_only_the_pages_own_script_may_run(report, tmp_path):
    page = Page(html(report, tmp_path))
    (policy,) = [v for tag, name, v in page.attributes if tag == "meta" and name == "content" and "default-src" in v]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "</" not in page.scripts[1][1]


def test_the_main_row_and_the_best_numbers_stand_out(report):
    found = headline(report)
    assert [line.kind for line in found.lines] == ["", "first", "main"]
    best = [[cell.text for cell in line.cells if "best" in cell.kind] for line in found.lines]
    assert best == [[], ["4 KiB", "1.000"], ["80.50", "90.50", "0.0312"]]


def test_the_best_are_those_of_each_width(report):
    plain, minmax, igq = report["rows"]
    report["rows"] = [
        plain,
        *({**row, "name": f"{w} {row['name']}"} for w in ("W4A4", "W8A8") for row in (minmax, igq)),
    ]
    report["runs"] = []
    found = headline(report)
    assert [line.kind for line in found.lines] == ["", "first", "main", "first", "main"]
    assert ["best" in line.cells[1].kind for line in found.lines] == [False, False, True, False, True]
    assert [line.partition(": ")[0] for line in verdict.verdict(report)] == ["W4A4", "W8A8"]


def test_equal_rows_are_not_the_best(report):
    assert verdict.best([report["rows"][0]] * 2) == [set(), set()]
    assert verdict.best(report["rows"][:1]) == [set()]
    lacking = [{**report["rows"][1], "top1": None}, report["rows"][2]]
    assert ["top1" in names for names in verdict.best(lacking)] == [False, False]


def test_the_verdict(report):
    assert verdict.verdict(report) == [
        "igq keeps 80.50 of 90.00 % top-1, 30.50 points above minmax, for 10.0 % more bit-operations and 2.0 times the "
        "bytes. It is 5.0 times smaller than float and needs 58 times fewer bit-operations."
    ]
    assert verdict.error_of(report) == "A standard error of top-1 on 200 images is 2.1 points."  # sqrt(.9 * .1 / 200)


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        ({"top1": 0.95}, "igq reaches 95.00 % top-1, float has 90.00 %, 45.00 points above minmax"),
        ({"spread": {"top1": 0.0125}}, "igq keeps 80.50 ±1.25 of 90.00 % top-1"),
        ({"top1": 0.5, "bops": 10**9, "bytes": 4096}, "igq keeps 50.00 of 90.00 % top-1, the same as minmax, for"),
        ({"top1": 0.4, "bops": 9 * 10**8}, "igq keeps 40.00 of 90.00 % top-1, 10.00 points below minmax, for 10.0"),
        ({"top1": None}, "igq decides as the float model does on 90.50 % of the images, KL 0.0312, 30.50 points above"),
    ],
)  # fmt: skip
def test_the_verdict_in_other_cases(report, change, beginning):
    report["rows"][2] |= change
    if change.get("top1", 0) is None:
        report["rows"][0]["top1"] = report["rows"][1]["top1"] = None
    (text,) = verdict.verdict(report)
    assert text.startswith(beginning)


def test_the_verdict_on_maps_and_without_min_max(report, tmp_path):
    cost = report["rows"][0]["cost"]
    rows = [
        dict(name=n, correlation=c, bytes=100, bops=1000, cost=cost)
        for n, c in {"float": 1.0, "a": 0.5, "igq": 0.75, "b": 0.6}.items()
    ]
    (text,) = verdict.verdict({**report, "rows": rows})
    assert text.startswith("the maps of igq correlate with the float model's at 0.7500, 0.1500 above b, for the same")
    assert verdict.error_of({**report, "rows": rows}) == ""
    assert Page(html({**report, "rows": rows}, tmp_path)).tags["table"]


def test_a_run_that_trains_a_float_model(report, tmp_path):
    report |= {"method": "supervised", "rows": report["rows"][:1], "sites": {}, "pictures": []}
    page = Page(html(report, tmp_path))
    contained(page)
    assert "The float model has 90.00 % top-1 and takes 40 KiB." in page.text
    assert "sites" not in page.ids
    assert "Bold numbers" not in page.text


def test_training_is_shown_by_its_courses(report, tmp_path):
    curves = {"step": [1, 2, 3], "loss": [4.0, 2.0, 1.5], "kl": []}
    page = Page(html({**report, "training": {"steps": 5, "taken": 3, "curves": curves}}, tmp_path))
    contained(page)
    assert "3 of 5 steps." in page.text
    assert ("loss", "4", "", "1.5") in page.cells
    points = [tuple(map(float, pair.split(","))) for pair in polyline([1, 2, 3], [4.0, 2.0, 1.5]).split()]
    assert [x for x, _ in points] == [2, 80, 158]
    assert [y for _, y in points] == pytest.approx([2, 28 - 2 - 24 * 0.2, 26], abs=0.06)  # down is more
    assert polyline([1], [5.0]) == "80.0,14.0"


def test_bars_are_logarithmic_and_span_four_decades_at_most():
    assert ends([1e-3, 0.5]) == (-3, 0)
    assert ends([1e-9, 0.02]) == (-5, -1)
    assert ends([]) == ends([0.0]) == (-1, 0)
    assert ends([1.0]) == (-1, 0)
    assert [length(e, -4, 0) for e in (0.0, 1e-9, 1e-4, 1e-2, 1.0, 5.0)] == pytest.approx([0, 0, 0, 0.5, 1, 1])


def test_sites_with_what_an_allocation_measured(report):
    fc1 = "block00/mlp/fc1.x"
    assert sensitivity(report) is None
    sites = {fc1: {"groups": 8, "candidates": [4, 8], "kl": [0.25, 0.5]}}
    allocated = sensitivity({**report, "allocation": {"sites": sites}})
    assert allocated.values == {fc1: 0.5}
    joint = sensitivity({**report, "joint": {"sites": {"patch": {"kl": 0.125}}}})
    assert joint.values == {"patch.x": 0.125}
    modules = {"block00/mlp": {"bits": 5, "loss": [0.5, 0.25]}, "block0": {"bits": 3, "loss": [1.0, 1.0]}}
    mixed = sensitivity({**report, "mixed": {"candidates": [3, 5], "modules": modules, "unit": "nats"}})
    assert mixed.values == {fc1: 0.25}
    grid = site_grid({**report, "allocation": {"sites": sites}})
    place = [h.text for h in grid.head].index("KL alone")
    assert {line.cells[0].text: line.cells[place].text for line in grid.lines} == {"patch.x": "", fc1: "5.0e-01"}
    assert {len(line.cells) for line in grid.lines} == {len(grid.head)}


def test_figures_take_the_pages_ink_and_do_not_meet(report, tmp_path):
    (tmp_path / "figures").mkdir()
    figures = [
        {"file": f"figures/{i}.svg", "title": f"title {i}", "caption": f"caption {i}", "group": "ranges"}
        for i in range(2)
    ]
    for figure in figures:
        (tmp_path / figure["file"]).write_text(SVG)
    page = Page(html({**report, "figures": figures}, tmp_path))
    contained(page)
    for text in ("Ranges and outliers", "title 0", "caption 1", "q < k"):
        assert text in page.text
    assert "made by" not in page.text
    assert {"figure0-c", "figure1-c", "figure0-glyph", "figure1-glyph"} <= {*page.ids}
    assert not any("figure_1" in name for name in page.ids)  # nothing refers to it
    assert ("use", "stroke", "currentColor") in page.attributes
    assert ("use", "fill", "#112233") in page.attributes
    assert ("text", "style", "fill: currentColor") in page.attributes
    assert ("g", "clip-path", "url(#figure1-c)") in page.attributes
    assert page.tags["style"] == 1  # not the figure's, which would be everybody's


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>", '<g onclick="alert(1)"/>', '<a href="http://x.invalid/">x</a>',
        '<image xlink:href="http://x.invalid/a.png"/>', '<rect style="fill: url(http://x.invalid/)"/>',
        '<foreignObject><b xmlns="http://www.w3.org/1999/xhtml"/></foreignObject>', '<a href="javascript:alert(1)"/>',
        "<style>@import 'http://x.invalid/';</style>", '<image href="data:image/svg+xml;base64,AAAA"/>',
        '<rect fill="URL( &quot;//x.invalid/&quot; )"/>', '<set attributeName="href" to="http://x.invalid/"/>',
    ],
)  # fmt: skip
def test_a_figure_cannot_run_or_fetch_anything(inside):
    begin = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    page = Page(str(inlined(f"{begin}{inside}<text>kept</text></svg>", "f", "t")))
    contained(page)
    assert page.text.endswith("kept")
    assert not page.scripts
    assert not any("x.invalid" in (value or "") or "alert" in (value or "") for _, _, value in page.attributes)


def test_pictures_inside_a_figure_stay():
    source = "data:image/png;base64," + base64.b64encode(PNG).decode()
    text = f'<svg xmlns="http://www.w3.org/2000/svg" width="36pt"><image href="{source}"/></svg>'
    page = Page(str(inlined(text, "f", 'a "title"')))
    assert ("image", "href", source) in page.attributes
    assert ("svg", "aria-label", 'a "title"') in page.attributes
    assert ("svg", "style", "--width: 48px") in page.attributes


def test_pictures_are_inside_and_what_is_missing_is_said(report, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "groups.png").write_bytes(PNG)
    (folder / "broken.svg").write_text("<svg")
    (folder / "text.svg").write_text("<p/>")
    (folder / "text.png").write_text("no picture")
    (tmp_path / "secret.png").write_bytes(PNG)
    names = ["broken.svg", "text.svg", "gone.svg"]
    report["figures"] = [{"file": name, "title": name, "caption": "", "group": "images"} for name in names]
    report["pictures"] = ["groups.png", "gone.png", "text.png", "../secret.png", str(tmp_path / "secret.png")]
    page = Page(html(report, folder))
    contained(page)
    (source,) = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    assert base64.b64decode(source.partition(",")[2]) == PNG
    for said in (
        "broken.svg is not an SVG that can be read", "text.svg is not an SVG", "gone.svg cannot be read: No such file",
        "gone.png cannot be read: No such file", "text.png is not a PNG", "../secret.png is not in the folder of",
        f"{tmp_path / 'secret.png'} is not in the folder", "coloured by group",
    ):  # fmt: skip
        assert said in page.text


def test_matplotlibs_figures_can_be_inlined(tmp_path):
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure((4, 2))
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.plot([1, 2, 3], marker="o", color="#010203")
    axes.imshow([[1, 2], [3, 4]])
    axes.set_title("tokens < 7", color="#010203")
    figure.savefig(tmp_path / "a.svg", metadata={"Date": None})
    text = inlined((tmp_path / "a.svg").read_text(), "a", "t")
    contained(page := Page(str(text)))
    assert "#010203" not in text
    assert "currentColor" in text
    assert page.tags["image"] == 1
    references = re.findall(r"url\(#([^)]*)\)", text)
    assert references
    assert {*references} <= {*page.ids}
    ElementTree.fromstring(text)


def test_a_page_is_written_beside_the_report(report, tmp_path):
    (tmp_path / "groups.png").write_bytes(PNG)
    report["pictures"] = ["groups.png"]
    write(report, tmp_path)
    assert (tmp_path / "report.html").read_text() == html(report, tmp_path)
    assert not [*tmp_path.glob("*.part")]
    with pytest.raises(ValueError, match="JSON"):
        html({**report, "seed": float("nan")}, tmp_path)
