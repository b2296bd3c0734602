"""How a run ends before its end: SIGTERM and Ctrl-C let the running piece of work finish, within a bound.

Every file is written as a whole, so that a run may be killed at any moment; a signal besides saves what there is.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BOUND = 30.0  #: seconds that a run has for the piece of work in which a signal reaches it


class Interruption:
    """Whether the run is to end, and by which signal; ``said`` is the last line where the bound was not kept."""

    def __init__(self, bound: float = BOUND) -> None:
        self.bound, self.number, self.said = bound, 0, ""
        self.ended = threading.Event()

    def stopping(self) -> bool:
        """Whether a signal has come: what is between two pieces of work asks this."""
        return bool(self.number)

    @property
    def code(self) -> int:
        """The exit code: 128 and the signal's number; that of Ctrl-C where none has come."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def name(self) -> str:
        """What stopped the run, in words."""
        return "Ctrl-C" if self.code == 128 + signal.SIGINT else signal.Signals(self.number).name

    def heard(self, number: int) -> None:
        """A signal has come: the first one is noted, a second one ends the process."""
        if self.number:
            os._exit(128 + number)
        self.number = number
        print(f"jvq: {self.name}: ending after this piece of work; once more to end at once", file=sys.stderr)
        threading.Thread(target=self._late, daemon=True).start()

    def _late(self) -> None:
        """Ends the process where it has not ended by itself: compiled code does not look for signals."""
        if not self.ended.wait(self.bound):
            print(f"jvq: stopped by {self.name} in a piece of work of over {self.bound:.0f} s", file=sys.stderr)
            print(self.said, file=sys.stderr, flush=True)
            os._exit(self.code)


@contextlib.contextmanager
def heeded(bound: float = BOUND) -> Iterator[Interruption]:
    """An interruption that SIGTERM and Ctrl-C raise as long as the block lasts; outside of the main thread none does.

    The signals are read from a socket by a thread: the main one may be in compiled code for minutes.
    """
    stop = Interruption(bound)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    near, far = socket.socketpair()
    far.setblocking(False)
    listener = threading.Thread(target=_listen, args=(near, stop.heard), daemon=True)
    listener.start()
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    woken = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        stop.ended.set()
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        far.close()
        listener.join()
        near.close()


def _listen(near: socket.socket, heard: Callable[[int], None]) -> None:
    """Hands on the number of every signal until the other end is closed."""
    while received := near.recv(1):
        if received[0] in SIGNALS:
            heard(received[0])
