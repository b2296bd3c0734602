"""The tail of an error line: the nearest right thing."""

import difflib
from collections.abc import Iterable


def nearest(got: str, known: Iterable[str], *, most: int = 3) -> str:
    """``" (did you mean 'a' or 'b'?)"``, or ``" (there are: a, b, c)"`` where nothing is near; to end an error with."""
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(got, names, n=most, cutoff=0.6)
    if close:
        return f" (did you mean {' or '.join(repr(c) for c in close)}?)"
    if not names:
        return " (there are none)"
    shown = ", ".join(names[:12]) + (f", ... {len(names)} in all" if len(names) > 12 else "")
    return f" (there are: {shown})"
