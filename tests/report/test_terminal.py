"""What a run shows where there is no terminal: lines, none of them folded."""

import pytest

from jvq.core.recipe import Operand
from jvq.quantizers import Grouped, Uniform
from jvq.report import Console, row_cells, show, show_plan, show_sites, terminal
from jvq.report.terminal import describe

LONG = "block00/attention/projection/of/a/rather/deep/model/that/has/long/names/in/it/and/more/fc1.x"
KNOWN = {
    LONG: Operand(LONG, "bnd", (1, 5, 16), "bno", (1, 5, 64), None),
    "head.w": Operand("head.w", "do", (16, 3), "bo", (1, 3), ("head", "kernel")),
}


@pytest.fixture
def said(monkeypatch, capsys):
    """Calls a function with a console and gives the words of each line it printed."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def lines(f, *args):
        f(*args, Console())
        return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return lines


def test_every_row_and_sentence_is_shown(report, said):
    lines = said(show, {**report, "warnings": ["look out"]})
    for row in report["rows"]:
        assert " ".join(row_cells(row)).split() in lines
    assert ["igq", "is", "5.0", "times", "smaller", "than", "float"] in [line[:7] for line in lines]
    assert ["warning:", "look", "out"] in lines


def test_sites_show_letters_shapes_and_parameters(said):
    lines = said(show_sites, KNOWN)
    assert [LONG, "bnd", "b", "x", "5", "x", "16", "bno"] in lines
    assert ["head.w", "do", "16", "x", "3", "bo", "head/kernel"] in lines


def test_the_plan_shows_quantisers_and_what_stays_float(said):
    lines = said(show_plan, {"head.w": Uniform(3, "o", range="mse")}, KNOWN)
    assert [LONG, "bnd", "float"] in lines
    assert ["head.w", "do", *["Uniform(bits=3,", "keep='o',", "range='mse')"]] in lines


def test_a_quantiser_is_described_by_what_differs_from_its_defaults():
    assert describe(Uniform()) == "Uniform(bits=8, keep='')"
    assert describe(Grouped(groups=3, mstep="mean")) == "Grouped(bits=4, groups=3, along='d', mstep='mean')"


def test_long_lines_are_not_folded_and_markup_is_text(said):
    text = "report: " + "/a long path" * 40 + " [bold]"
    assert said(lambda console: console.say(text)) == [text.split()]


def test_quiet_is_silent(report, capsys):
    show(report, Console(quiet=True))
    assert capsys.readouterr().out == ""


def test_tracking_hands_on_every_item_and_says_what_it_does(said):
    got = []
    assert said(lambda console: got.extend(console.track(iter(range(5)), "counting"))) == [["counting", "..."]]
    assert got == list(range(5))


def test_what_is_tracked_is_counted_behind_each_item(monkeypatch):
    moves = []
    monkeypatch.setattr(terminal.Bar, "at", lambda bar, done: moves.append((done, bar.total)))
    console = Console(quiet=True)
    for total, items in ((3, "abc"), (None, iter("abc")), (4, "abcd")):
        moves.clear()
        for i, _ in enumerate(console.track(items, "counting", total)):
            assert len(moves) == i, "an item is done when the next is asked for"
        assert moves == [(i + 1, total) for i in range(total or 3)]


def test_steps_end_with_the_last_numbers(said):
    def loop(console):
        with console.steps(1000, "training") as bar:
            for i in range(1000):
                bar.at(i + 1, {"loss": 1 / (i + 1), "rate": 0.5})

    first, last = said(loop)
    assert first == ["training", "..."]
    assert last == ["training:", "1000", "of", "1000", "(loss", "0.001,", "rate", "0.500)", "in", "0", "s"]
