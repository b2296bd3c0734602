"""How a command ends where its user made a mistake: in one line, with exit code 2."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

ECHO = "Event loop is closed"  #: to whoever is late; what failed is said by itself


@contextlib.contextmanager
def one_line(*kinds: type[Exception], text: Callable[[Exception], str] = str) -> Iterator[None]:
    """Errors of these kinds, which a user can cause, end in one line on stderr and exit code 2; ``text`` says which.

    With ``JVQ_TRACEBACK`` in the environment they go on as they are.
    """
    try:
        yield
    except kinds as error:
        if os.environ.get("JVQ_TRACEBACK"):
            raise
        print(f"jvq: {' '.join(text(error).split())}", file=sys.stderr)
        sys.exit(2)


def without_echoes(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """``sys.unraisablehook`` without what threads of orbax say, a page, when another file of theirs has failed."""

    def heard(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == ECHO):
            hook(unraisable)

    return heard
