"""Signals: the first one lets a piece of work end, within a bound; a second one ends the process at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jvq.interrupts import SIGNALS, heeded
from jvq.report import Console

FILE = Path(__file__).parents[1] / "jvq" / "interrupts.py"
WORK = """
import hashlib, runpy, sys, threading, time
heeded = runpy.run_path({file!r})["heeded"]
with heeded(bound={bound}) as stop:
    stop.said = "go on like this"
    print("ready", flush=True)
    {work}
print("went on", stop.name, stop.code, flush=True)
sys.exit(stop.code)
"""
LOOP = "while not stop.stopping(): time.sleep(0.01)"
COMPILED = "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)"  # minutes outside of the interpreter


def started(work, bound):
    code = WORK.format(file=str(FILE), bound=bound, work=work)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_lets_the_work_end(number):
    process = started(LOOP, 60)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert (process.returncode, out) == (128 + number, f"went on {name} {128 + number}\n")
    assert err == f"jvq: {name}: ending after this piece of work; once more to end at once\n"


def test_compiled_code_that_does_not_end_is_ended_at_the_bound():
    process, start = started(COMPILED, 0.5), time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - start > 0.4
    assert err.splitlines()[1:] == ["jvq: stopped by SIGTERM in a piece of work of over 0 s", "go on like this"]


def test_a_second_signal_ends_at_once():
    process = started(COMPILED, 600)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "SIGTERM" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_handlers_are_as_before_when_the_block_ends():
    before = [signal.getsignal(number) for number in SIGNALS]
    with heeded() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] != before
        assert not stop.stopping()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert (stop.code, stop.name) == (130, "Ctrl-C"), "what a KeyboardInterrupt without a signal comes to"


def test_outside_of_the_main_thread_nothing_is_changed():
    found = []

    def work():
        with heeded() as stop:
            found.append((stop.stopping(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]


def test_a_console_stops_between_two_items():
    done = []

    def counted(stop):
        for i in Console(quiet=True, stopping=stop.stopping).track(range(5), "counting"):
            done.append(i)
            if i == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                while not stop.stopping():
                    time.sleep(0.01)

    with heeded() as stop, pytest.raises(KeyboardInterrupt):
        counted(stop)
    assert done == [0, 1, 2]
    assert stop.code == 143


def test_what_is_done_when_the_signal_comes_is_not_lost():
    """The last item ends the loop, whatever comes meanwhile."""
    console = Console(quiet=True)
    items = console.track(range(3), "counting")
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    console.stopping = lambda: True
    assert list(items) == []
