"""The values in a pickle of torch's, worked out operation by operation: nothing is called, nothing is imported.

A pickle is a program. The one in a checkpoint needs forty of its operations: they make numbers, texts, tuples, lists
and dictionaries, and name what tensors are made of. Those names are looked up in a table of ours; every other
operation, and every other name, is refused.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

MOST = 2**18  #: operations; a tensor takes about thirty, so this is 8,000 of them
FEW = 8  #: arguments of a call; a tensor has seven
KEYS = (str, int, float, bytes, type(None))  #: of dictionaries: a tuple of tuples can take forever to hash,
WIDEST = 64  #: bits of a whole number as a key: and one of millions takes long each time
SILENT = {"PROTO", "FRAME"}
NUMBERS = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
LITERALS = NUMBERS | TEXTS | BYTES
PLAIN: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

Call = Callable[..., Any]


class Refused(Exception):
    """What a pickle wants and does not get."""


class Machine:
    """A pickle's stack and memory. ``names`` gives what it may name, ``storage`` what a persistent id is."""

    def __init__(self, names: Callable[[str], Call | Any], storage: Callable[[Any], Any]) -> None:
        self.names, self.storage = names, storage
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under marks
        self.memory: dict[int, Any] = {}
        self.left = MOST  # things in what calls are given: the same list may be given again and again

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def step(self, name: str, argument: Any) -> None:
        """Does one operation but STOP and what only puts its argument on the stack."""
        stack = self.stack
        if name in PLAIN:
            stack.append(PLAIN[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memory[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memory[len(self.memory)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memory[int(argument)])
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self.marked()
            made = {"TUPLE": tuple, "LIST": list, "DICT": paired}[name](items)
            self.stack.append(made)
        elif name in TUPLES:
            n = TUPLES[name]
            if len(stack) < n:
                raise Refused("a tuple of what is not there")
            stack[-n:] = [tuple(stack[-n:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.marked()
            of_kind(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.marked()
            of_kind(self.stack[-1], dict).update(paired(items))
        else:
            self.calls(name, argument)

    def calls(self, name: str, argument: Any) -> None:
        """The operations that would import or call something."""
        stack = self.stack
        if name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if name == "GLOBAL" else [stack.pop(-2), stack.pop()]
            stack.append(self.names(".".join(of_kind(part, str) for part in parts)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, call = of_kind(stack.pop(), tuple), stack.pop()
            if not callable(call):
                raise Refused(f"a call of {type(call).__name__}")
            if len(arguments) > FEW:
                raise Refused(f"a call with {len(arguments)} arguments")
            self.left -= sum(len(x) for x in arguments if isinstance(x, tuple | list | dict))
            if self.left < 0:
                raise Refused(f"calls with more than {MOST} things")
            stack.append(call(*arguments))
        elif name == "BUILD":  # attributes of an ordered dictionary, which are not its content
            stack.pop()
            of_kind(stack[-1], dict)
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        else:
            raise Refused(f"the operation {name}, which no checkpoint needs")


def values(data: bytes, names: Callable[[str], Call | Any], storage: Callable[[Any], Any]) -> Any:
    """What the pickle is of. Raises ``Refused``, and ``ValueError`` and ``LookupError`` for what is no pickle."""
    machine = Machine(names, storage)
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if name in LITERALS:  # most of a pickle, so of a hostile one too
            machine.stack.append(argument)
        elif name == "STOP":
            return machine.stack.pop()
        elif name not in SILENT:
            machine.step(name, argument)
        if count > MOST:
            raise Refused(f"more than {MOST} operations")
    raise Refused("no end")


def of_kind(x: Any, *kinds: type) -> Any:
    """``x``; ``Refused`` where it is of another kind."""
    if not isinstance(x, kinds):
        raise Refused(f"a {type(x).__name__} where a {kinds[0].__name__} must be")
    return x


def paired(items: list[Any]) -> dict[Any, Any]:
    """A dictionary of keys and values in turn."""
    if len(items) % 2:
        raise Refused("a key without a value")
    for key in items[::2]:
        if not isinstance(key, KEYS):
            raise Refused(f"a {type(key).__name__} as a key")
        if isinstance(key, int) and key.bit_length() > WIDEST:
            raise Refused(f"a number of {key.bit_length()} bits as a key")
    return dict(zip(items[::2], items[1::2], strict=True))


def ordered(items: Any = (), *_: Any) -> dict[Any, Any]:
    """What stands for ``OrderedDict``: of nothing, of a mapping, or of pairs."""
    if isinstance(items, Mapping):
        return dict(items)
    return paired([x for pair in of_kind(items, list, tuple) for x in of_kind(pair, list, tuple)[:2]])
