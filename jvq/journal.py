"""What a long computation has found so far, kept in a file: it goes on where it was interrupted."""

import hashlib
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvq.core import files, hosts
from jvq.core.mesh import gathered


def fingerprint(*things: Any) -> str:
    """A short digest of arrays and of whatever ``repr`` tells apart, in trees.

    Of arrays in parts on devices of several processes all have to ask, at the same place.
    """
    leaves, form = jax.tree.flatten(things)
    digest = hashlib.sha256(str(form).encode())
    for leaf in leaves:
        if hasattr(leaf, "dtype"):
            leaf = np.asarray(gathered(leaf))
            digest.update(f"{leaf.dtype} {leaf.shape}\n".encode())
            digest.update(leaf.tobytes())
        else:
            digest.update(f"{leaf!r}\n".encode())
    return digest.hexdigest()[:16]


class Journal(MutableMapping[str, Any]):
    """A mapping of JSON values, each on disk (a line of JSON) before the assignment returns.

    A file of another ``fingerprint`` is of another computation and is replaced, with the first value that there is. A
    last line that was cut off by an interruption is dropped.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.values_: dict[str, Any] = {}
        self.head = json.dumps({"fingerprint": fingerprint})
        self.begun = False
        lines = hosts.agreed(_lines(path))  # of many processes all go on from what the leading one has
        if lines[:1] == [self.head]:
            for line in lines[1:]:
                self.values_.update(json.loads(line))
        self.resumed = len(self.values_)  #: values found in the file

    def _begin(self) -> None:
        """Makes the file one of this journal, with nothing but what it holds: an interruption loses nothing."""
        kept = (self.head, *(json.dumps({k: v}) for k, v in self.values_.items()))
        files.replace(self.path, "".join(f"{line}\n" for line in kept))
        self.begun = True

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not self.begun:
            self._begin()
        files.append(self.path, json.dumps({key: value}) + "\n")
        self.values_[key] = value

    def __delitem__(self, key: str) -> None:
        raise TypeError("a journal only grows")

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def _lines(path: Path) -> list[str]:
    """The whole lines of the file, none where there is none; up to the first that is no JSON object."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            value, text = json.loads(line), line.decode()
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        found.append(text)
    return found
