"""What a command says of itself, and how its flags are read."""

import pytest
from absl import flags
from rich.console import Console

from jvq import usage


@pytest.fixture
def read():
    """A reader of flags that exist in this test alone."""
    own = flags.FlagValues()
    flags.DEFINE_integer("rounds", 9, "How often", flag_values=own)
    flags.DEFINE_float("rate", 0.5, "How fast", flag_values=own)
    flags.DEFINE_list("models", ["a", "b"], "Which", flag_values=own)
    flags.DEFINE_enum("weights", "fast", ["fast", "small"], "A byte,\n or less", flag_values=own)
    flags.DEFINE_string("out", None, "Where", flag_values=own)
    flags.DEFINE_bool("memory", True, "Also memory", flag_values=own)
    flags.DEFINE_bool("dry", False, "Nothing", flag_values=own)
    return own


@pytest.fixture
def command(read, monkeypatch, capsys):
    monkeypatch.setattr(usage.flags, "FLAGS", read)
    monkeypatch.setenv("COLUMNS", "100")
    names = ("rounds", "rate", "models", "weights", "out", "memory", "dry")

    def call(*args):
        try:
            return (
                0,
                usage.reader("\nMeasures ``time``,\nno more.\n\n  python -m x\n  python -m x y\n", names)(["x", *args]),
                "",
            )
        except SystemExit as stop:
            out = capsys.readouterr()
            return stop.code, out.out, out.err

    return call


def test_flags_are_read(command, read):
    assert command("file", "--rounds=3", "--nomemory") == (0, ["x", "file"], "")
    assert (read.rounds, read.memory) == (3, False)


@pytest.mark.parametrize("asked", usage.ASKED)
def test_help_is_the_text_and_the_flags(asked, command):
    code, out, err = command("--rounds=3", asked)
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == [
        "Measures time,", "no more.", "", "  python -m x", "  python -m x y", "",
        "  --rounds=N            How often [9]",
        "  --rate=X              How fast [0.5]",
        "  --models=A,B          Which [a,b]",
        "  --weights=fast|small  A byte, or less [fast]",
        "  --out=TEXT            Where",
        "  --[no]memory          Also memory",
        "  --dry                 Nothing",
        "", usage.END,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arg", "says"),
    [("--ronds=3", "Unknown command line flag 'ronds'. Did you mean: rounds"), ("--rounds=x", "flag --rounds=x: "),
     ("--weights=fats", "flag --weights=fats: value should be one of <fast|small>")],
)  # fmt: skip
def test_a_mistake_is_one_line(arg, says, command):
    code, out, err = command(arg)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"jvq: {says}")


def test_the_name_of_the_command_is_no_question():
    assert not usage.asked(["--help", "x"])
    assert usage.asked(["x", "--help"])


def test_prose_that_is_too_wide_is_folded_at_blanks_and_commands_never(monkeypatch, capsys):
    monkeypatch.setattr(usage, "Console", lambda **options: Console(width=20, **options))
    usage.show("Prose of several words,\nin two lines.\n\n  python -m jvq.main --with --many --flags", ())
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == [
        "Prose of several",
        "words, in two lines.",
        "",
        "  python -m jvq.main --with --many --flags",
        "",
    ]
