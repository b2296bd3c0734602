"""The pages in a real Chromium, where there is one: sorting, filtering, copying, colours, and nothing fetched."""

import shutil

import pytest

from jvq.report import compare, html
from jvq.report.reading import Run

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COUNT = 400  #: operands, as a large model has
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="900pt" height="90pt" viewBox="0 0 900 90"><text id="a" y="50" '
    'style="fill: #010203">{}</text></svg>'
)


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, report, tmp_path):
    """``opened(width=, scheme=, several=) -> page`` of a report with many sites, figures and long names."""
    contexts, said = [], []
    site = report["sites"]["patch.x"]
    report["sites"] = {
        f"block{i:03}/attn/qkv.{'xw'[i % 2]}": {
            **site, "relative_error": 10.0 ** -(1 + i * 7 % 23 / 5), "groups": 8 if i % 3 else None,
        }
        for i in range(COUNT)
    }  # fmt: skip
    report["protocol"]["a very long field"] = "word " * 60 + "w" * 300
    report["command"] += " --workdir=/" + "x" * 200
    report["figures"] = [{"file": f"{i}.svg", "title": f"t{i}", "caption": "", "group": "ranges"} for i in range(2)]
    for figure in report["figures"]:
        (tmp_path / figure["file"]).write_text(SVG.format(figure["title"]))
    other = {**report, "protocol": {"weights": "8 bits"}}
    runs = [Run(report, tmp_path, "one"), Run(other, tmp_path, "a run with a rather long name")]

    def call(width=1280, scheme="light", several=False):
        (tmp_path / "page.html").write_text(compare.html(runs) if several else html(report, tmp_path))
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a machine may be busy
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file://", "data:")) else said.append(r.url))
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield call
    assert said == []
    for context in contexts:
        context.close()


def shown(page, place=0):
    """The texts of a column of the sites' table, of the rows that are not hidden."""
    script = f"rows => rows.filter(r => !r.hidden).map(r => r.cells[{place}].textContent.trim())"
    return page.eval_on_selector_all("table.sites tbody tr", script)


def heading(page, text):
    """The heading of a column of the sites' table, and its button."""
    head = page.locator("table.sites thead th", has_text=text)
    return head, head.locator("button")


def test_a_heading_sorts_and_sorts_back(opened):
    page = opened()
    before = shown(page)
    head, button = heading(page, "relative error")
    for way, sign in (("descending", -1), ("ascending", 1)):
        button.click()
        assert head.get_attribute("aria-sort") == way
        errors = [float(text) for text in shown(page, 1)]
        assert errors == sorted(errors, key=lambda e, sign=sign: sign * e)
        assert len({*errors}) > 5
    button.click()
    assert head.get_attribute("aria-sort") == "none"
    assert shown(page) == before


def test_a_heading_sorts_by_the_keyboard_and_by_text(opened):
    page = opened()
    heading(page, "address")[1].focus()
    page.keyboard.press("Enter")
    assert shown(page) == sorted(shown(page))
    page.keyboard.press("Space")
    assert shown(page) == sorted(shown(page), reverse=True)
    heading(page, "groups")[1].click()
    assert heading(page, "address")[0].get_attribute("aria-sort") == "none"
    groups = shown(page, 3)
    assert groups == sorted(groups, key=lambda text: text == "")  # what has none stays below
    heading(page, "groups")[1].click()
    assert shown(page, 3) == groups


def test_sizes_sort_by_bytes(opened, report):
    report["rows"][0]["bytes"], report["rows"][2]["bytes"] = 2**23, 40 * 1024
    page = opened()
    page.locator("table.headline thead th", has_text="size").locator("button").click()
    script = "rows => rows.map(r => r.cells[4].textContent)"
    assert page.eval_on_selector_all("table.headline tbody tr", script) == ["8.0 MiB", "40 KiB", "4 KiB"]


FILTERS = {
    "BLOCK01": lambda a: "block01" in a,
    "*.w": lambda a: a.endswith(".w"),
    "block00[0-2]*": lambda a: a[5:8] in ("000", "001", "002"),
    "block00[!0-8]*.?": lambda a: a.startswith("block009"),
    "lock00*": lambda a: False,  # a glob is of the whole address
    "attn.qkv*": lambda a: False,
    "block000": lambda a: a.startswith("block000"),
    "[z-a]*": lambda a: False,
    "*[": lambda a: False,
    "(": lambda a: False,
    "": lambda a: True,
}


def test_the_filter_takes_parts_and_globs(opened):
    page = opened()
    every = shown(page)
    for text, matches in FILTERS.items():
        page.fill("input.filters", text)
        assert shown(page) == [a for a in every if matches(a)], text
        assert page.locator(".filter output").text_content() == f"{len(shown(page))} of {COUNT}"


def test_hundreds_of_sites_are_quick(opened):
    page = opened()
    script = """() => {
        const start = performance.now();
        document.querySelectorAll("table.sites thead button").forEach(button => button.click());
        const input = document.querySelector("input.filters");
        for (const text of ["a", "at", "*.w", ""]) { input.value = text; input.dispatchEvent(new Event("input")); }
        document.querySelector("table.sites").getBoundingClientRect();
        return performance.now() - start;
    }"""
    assert page.evaluate(script) < 3000  # eight sorts and four filters: 0.1 s where nothing else runs


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_no_page_scrolls_sideways(opened, several):
    page = opened(several=several)
    for width in (1280, 1100, 768, 375, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.body.scrollHeight") > 2000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_asked(opened, scheme):
    page = opened(scheme=scheme)
    brightness = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    )
    ink = "getComputedStyle(document.querySelector('svg.figure text')).fill"
    assert (page.evaluate(brightness) > 384) == (scheme == "light")
    assert page.evaluate(ink) == page.evaluate("getComputedStyle(document.body).color")
    page.click("#theme")
    assert (page.evaluate(brightness) > 384) == (scheme == "dark")
    assert page.evaluate(ink) == page.evaluate("getComputedStyle(document.body).color")
    page.reload()
    assert (page.evaluate(brightness) > 384) == (scheme == "dark")  # it is remembered


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, scheme):
    page = opened(scheme=scheme, several=True)
    script = """() => {
        const light = text => {
            const [r, g, b] = text.match(/[\\d.]+/g).map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92
                : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = e => {
            for (; e; e = e.parentElement) {
                const colour = getComputedStyle(e).backgroundColor;
                if (!/, 0\\)$/.test(colour)) return colour;
            }
        };
        const texts = document.querySelectorAll("p, td, th, dt, dd, li, a, button, h1, h2, h3, code, output");
        return Math.min(...[...texts].map(e => {
            const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
        }));
    }"""
    assert page.evaluate(script) > 4.5  # WCAG 2.1, level AA


def test_a_link_opens_its_section_and_the_command_is_copied(opened, report):
    page = opened()
    section = page.locator("#protocol details")
    page.click("#protocol summary")
    assert section.get_attribute("open") is None
    page.click("nav a[href='#protocol']")
    page.locator("#protocol details[open]").wait_for()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("button.copy")
    page.locator("button.copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == report["command"]


def test_a_page_prints_with_all_of_it(opened):
    page = opened()
    page.click("#protocol summary")
    page.emulate_media(media="print")
    assert not page.is_visible("nav")
    assert not page.is_visible("button.copy")
    assert len(page.pdf()) > 20_000
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == 1
