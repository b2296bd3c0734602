"""How a command ends where its user made a mistake."""

import types

import pytest

from jvq.mistakes import one_line, without_echoes


def test_an_error_is_a_line(capsys, monkeypatch):
    monkeypatch.delenv("JVQ_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended, one_line(ValueError):
        raise ValueError("no such\n  folder")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "jvq: no such folder\n"
    with pytest.raises(KeyError), one_line(ValueError):
        raise KeyError("a mistake of ours")


def test_with_a_traceback_it_goes_on(monkeypatch):
    monkeypatch.setenv("JVQ_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such folder"), one_line(ValueError):
        raise ValueError("no such folder")


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (RuntimeError("Event loop is closed"), False),
        (RuntimeError("Event loop is closed, and more"), True),
        (ValueError("Event loop is closed"), True),
        (None, True),
    ],
)
def test_only_the_echo_is_not_heard(error, heard):
    said = []
    without_echoes(said.append)(types.SimpleNamespace(exc_value=error))
    assert bool(said) == heard
