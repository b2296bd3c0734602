"""How a command ends where its user made a mistake: in one line, with exit code 2."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


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
