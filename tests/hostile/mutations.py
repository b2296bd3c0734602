"""Changes of bytes and of JSON values, drawn by a generator: the same seed gives the same change."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Change = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**60, 2**63, 2**64, 10**30)
TEXTS = (
    "",
    "x",
    "x" * 5000,
    "two\nlines",
    "\x1b[2J",
    "\0",
    "\ud800",
    "../../etc/passwd",
    "/etc/passwd",
    "__import__('os').system('touch canary')",
    "%s%n{}{0.__class__}",
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *TEXTS,
    None,
    True,
    False,
    0.5,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
    [],
    [0, 0],
    [-1, 2**40],
    [1] * 300,
    ["x", 1],
    {},
    {"x": 1},
    {"name": {"name": None}},
)


def flipped(rng: random.Random, data: bytes) -> bytes:
    """One bit is another."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def replaced(rng: random.Random, data: bytes) -> bytes:
    """One to eight bytes are others, often extreme ones."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def truncated(rng: random.Random, data: bytes) -> bytes:
    """The first bytes."""
    return data[: rng.randrange(len(data))]


def inserted(rng: random.Random, data: bytes) -> bytes:
    """Random bytes in between, or behind."""
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 100, 5000))) + data[at:]


def doubled(rng: random.Random, data: bytes) -> bytes:
    """A piece is there twice."""
    a, b = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return data[:b] + data[a:b] + data[b:]


def dropped(rng: random.Random, data: bytes) -> bytes:
    """A piece is not there."""
    a = rng.randint(0, len(data))
    return data[:a] + data[a + rng.choice((1, 2, 4, 16, 64)) :]


def swapped(rng: random.Random, data: bytes) -> bytes:
    """Two pieces stand in each other's place."""
    a, b, c = sorted(rng.randint(0, len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def counted(rng: random.Random, data: bytes) -> bytes:
    """Four or eight bytes are an extreme number, little or big endian."""
    size = rng.choice((2, 4, 8))
    at = rng.randint(0, max(0, len(data) - size))
    number = (rng.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("little", "big")))
    return data[:at] + number + data[at + size :]


BYTES: tuple[Change, ...] = (flipped, replaced, truncated, inserted, doubled, dropped, swapped, counted)


def of_bytes(rng: random.Random, data: bytes) -> bytes:
    """One of the changes that know nothing of the format, sometimes two of them."""
    for _ in range(1 if rng.random() < 0.8 else 2):
        data = rng.choice(BYTES)(rng, data) if data else rng.randbytes(rng.randint(1, 64))
    return data


# --- JSON -----------------------------------------------------------------------------------------------------------


def value(rng: random.Random, tree: Any) -> Any:
    """The JSON value with one place in it changed: replaced, left out, doubled under another name, made a list of."""
    tree = copy.deepcopy(tree)
    holder, key = [tree], 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:  # type: ignore[index]
        holder = holder[key]  # type: ignore[assignment,index]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    root = [tree] if holder == [tree] else None
    holder = root or holder
    what = rng.random()
    if what < 0.6 or root:
        holder[key] = numbered(rng, holder[key]) if rng.random() < 0.3 else copy.deepcopy(rng.choice(VALUES))
    elif what < 0.75:
        del holder[key]
    elif what < 0.85 and isinstance(holder, dict):
        holder[rng.choice((f"{key}x", *TEXTS))] = holder[key]
    elif what < 0.92 and isinstance(holder, list):
        holder.insert(rng.randint(0, len(holder)), copy.deepcopy(rng.choice(holder)))
    else:
        holder[key] = [holder[key]]
    return root[0] if root else tree


def numbered(rng: random.Random, old: Any) -> Any:
    """A number near the old one; anything else as it is."""
    if isinstance(old, bool) or not isinstance(old, int | float):
        return old
    return rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, old + 0.5))


def text(rng: random.Random, data: bytes) -> bytes:
    """JSON with a value changed, or what is no JSON any more in one of the ways that break readers."""
    what = rng.random()
    if what < 0.8:
        try:
            return json.dumps(value(rng, json.loads(data))).encode()
        except ValueError:
            return of_bytes(rng, data)
    at = rng.randint(0, len(data))
    odd = (
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b"NaN",
        b"1" * 5000,
        b"\xed\xa0\x80",
        b"1e999",
        b"\0",
        b"\xe2\x80\xa8",
    )
    return data[:at] + rng.choice(odd) + data[rng.choice((at, at + 1, len(data))) :]


def lines(rng: random.Random, data: bytes) -> bytes:
    """JSON lines with one of them changed, doubled, cut or gone."""
    rows = data.split(b"\n")
    at = rng.randrange(len(rows))
    what = rng.random()
    if what < 0.6:
        rows[at] = text(rng, rows[at] or b"{}")
    elif what < 0.75:
        rows.insert(rng.randint(0, len(rows)), rows[at])
    elif what < 0.9:
        del rows[at]
    else:
        rows[at] = rows[at][: rng.randint(0, len(rows[at]))]
    return b"\n".join(rows)
