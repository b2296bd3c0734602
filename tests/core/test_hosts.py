"""What a single process finds of the others: nobody; two and four are in tests/distributed."""

import pytest

from jvq import main
from jvq.core import hosts


def test_a_single_process_has_what_it_has():
    assert (hosts.count(), hosts.sent(b"x"), hosts.sent(None)) == (1, b"x", None)


def test_a_silence_is_at_least_a_second():
    with pytest.raises(ValueError, match="--silence: got 0, must be at least 1 second"):
        hosts.joined("localhost:1", 2, 0, silence=0)


def test_the_command_waits_as_long_as_the_library():
    assert main.SILENCE.default == hosts.SILENCE
