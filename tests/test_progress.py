"""How far something is, where there is a terminal, a notebook, or neither. Time is a clock that the test moves."""

import io
import itertools
import re

import pytest
from rich.console import Console

from jvq import progress
from jvq.progress import Bar, lasting


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def console(**options):
    return Console(file=io.StringIO(), width=120, highlight=False, **options)


def watched(clock, seconds, *, total, **options):
    """The lines of a bar whose items take so many seconds each, and the times at which they came."""
    out, lines = console(), []
    with Bar(out, "counting", total, clock=clock, **options) as bar:
        for i, took in enumerate(seconds):
            clock.now += took
            bar.at(i + 1)
            new = out.file.getvalue().splitlines()
            lines += [(clock.now - 1000, line) for line in new[1 + len(lines) :]]
    return out.file.getvalue().splitlines(), lines


def test_what_is_short_says_one_line(clock):
    assert watched(clock, [0.5] * 20, total=20)[0] == ["counting ..."]


def test_what_is_long_says_how_long_it_still_takes(clock):
    lines, _ = watched(clock, [1.0] * 40, total=40)
    assert lines == [
        "counting ...",
        "counting: 15 of 40, 25 s left",
        "counting: 30 of 40, 10 s left",
        "counting: 40 of 40 in 40 s",
    ]


def test_the_first_item_does_not_count_because_it_compiles(clock):
    lines, _ = watched(clock, [60.0, *[1.0] * 39], total=40)
    assert lines[1:3] == ["counting: 1 of 40", "counting: 16 of 40, 24 s left"]


def test_steps_of_a_minute_each_have_a_remaining_time(clock):
    lines, _ = watched(clock, [60.0] * 5, total=5)
    assert lines[1:] == [
        "counting: 1 of 5", *(f"counting: {i} of 5, {5 - i} min 00 s left" for i in (2, 3, 4)),
        "counting: 5 of 5 in 5 min 00 s",
    ]  # fmt: skip


def test_lines_come_ever_less_often_but_not_too_seldom(clock):
    _, lines = watched(clock, [1.0] * 20_000, total=20_000)
    pauses = [b - a for (a, _), (b, _) in itertools.pairwise(lines)]
    assert lines[0][0] == pauses[0] == 15
    assert pauses == sorted(pauses)
    assert max(pauses) == 300
    assert len(lines) < 120


def test_nobody_knows_how_many_there_will_be(clock):
    lines, _ = watched(clock, [10.0] * 3, total=None)
    assert lines == ["counting ...", "counting: 2", "counting: 3 in 30 s"]


def test_bytes_are_told_as_such_and_their_number_may_come_late(clock):
    out = console()
    with Bar(out, "model.safetensors", None, in_bytes=True, clock=clock) as bar:
        for done in (50_000_000, 100_000_000):
            clock.now += 20
            bar.at(done, total=343_000_000)
    assert out.file.getvalue().splitlines()[1:] == [
        "model.safetensors: 50 of 343 MB",
        "model.safetensors: 100 of 343 MB, 1 min 38 s left",
        "model.safetensors: 100 of 343 MB in 40 s",
    ]


def test_the_latest_numbers_and_markup_are_text(clock):
    out = console()
    with Bar(out, "training [vit]", 2, last=True, clock=clock) as bar:
        bar.at(1, "loss 3.000")
        bar.at(2, "loss [2]")
    assert out.file.getvalue().splitlines() == ["training [vit] ...", "training [vit]: 2 of 2 (loss [2]) in 0 s"]


def test_what_fails_has_no_end(clock):
    out = console()
    with pytest.raises(RuntimeError), Bar(out, "counting", 2, last=True, clock=clock):
        raise RuntimeError
    assert out.file.getvalue().splitlines() == ["counting ..."]


def test_a_terminal_has_a_bar_that_is_gone_at_the_end(clock):
    out = console(force_terminal=True)
    with Bar(out, "counting [x]", 2, clock=clock) as bar:
        bar.at(1)
        bar.rich.refresh()
        shown = out.file.getvalue()
    assert "counting [x]" in shown
    assert "1/2" in shown
    assert out.file.getvalue().endswith("\x1b[2K"), "the line is cleared"


def test_a_notebook_has_one_line_that_changes(clock, monkeypatch):
    states = []

    class Cell:
        def update(self, data, raw):
            states.append(data["text/plain"])

    class Display:
        @staticmethod
        def display(data, raw, display_id):
            states.append(data["text/plain"])
            return Cell()

    monkeypatch.setattr(progress.importlib, "import_module", {"IPython.display": Display}.__getitem__)
    out = console(force_jupyter=True)
    with Bar(out, "counting", 10, clock=clock) as bar:
        for i in range(10):
            clock.now += 0.3
            bar.at(i + 1)
    assert states[0] == "╌" * 30 + "  counting: 0 of 10"
    assert states[1] == "━" * 6 + "╌" * 24 + "  counting: 2 of 10, 3 s left"
    assert states[-1] == "counting: 10 of 10 in 3 s"
    assert len(states) == 7  # every other one: they are 0.3 seconds apart
    assert out.file.getvalue() == ""

    def interrupted():
        with Bar(out, "counting", 10, clock=clock) as bar:
            bar.at(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert re.fullmatch("counting: 3 of 10.*, stopped", states[-1])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3599.6, "1 h 00 min"),
        (11_220, "3 h 07 min"), (183_600, "2 d 3 h"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert lasting(float(seconds)) == text
