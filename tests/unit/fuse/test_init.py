"""INIT: what is offered and wanted is agreed on, and a kernel that cannot serve is refused with a reason."""

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.errors import MountFailed
from cmkfs.fuse.init import NEEDED, NO_FLAGS, OPTIONAL, InitFlag, Wish, negotiate, parse_init

UNIQUE = 0x1122334455667788
FLAGS = list(OPTIONAL)
SUBSETS = [sum(chosen, NO_FLAGS) for size in range(7) for chosen in itertools.combinations(FLAGS, size)]
ALL = NEEDED | OPTIONAL | InitFlag.INIT_EXT


def request(flags: int = ALL, *, length: int = 104, opcode: int = 26, major: int = 7, minor: int = 45) -> bytes:
    """The kernel's INIT, written from linux/fuse.h and not with the code under test."""
    header = struct.pack("<IIQQIIIHH", length, opcode, UNIQUE, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("<IIIII", major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32) + bytes(44)


def answer(flags: int, *, minor: int = 38, background: int = 0, congestion: int = 0) -> bytes:
    """What it is to be answered, likewise."""
    body = struct.pack("<IIII", 7, minor, 131072, flags & 0xFFFFFFFF)
    body += struct.pack("<HHII", background, congestion, 1 << 20, 1)
    body += struct.pack("<HHI", 256, 0, flags >> 32) + bytes(28)
    return struct.pack("<IiQ", 80, 0, UNIQUE) + body


@pytest.mark.parametrize("offered", SUBSETS)
def test_exactly_what_is_wished_for_and_offered_is_asked_for(offered: InitFlag) -> None:
    for wished in SUBSETS:
        sent, found = negotiate(request(NEEDED | offered | InitFlag.INIT_EXT), Wish(wished, 0))
        granted = wished & offered
        expected = NEEDED | granted | (InitFlag.INIT_EXT if granted >> 32 else NO_FLAGS)
        assert sent == answer(expected)
        assert found.flags == expected
        assert found.refused == wished & ~offered


@pytest.mark.parametrize("wished", SUBSETS)
def test_a_kernel_without_a_second_word_of_flags_gets_none(wished: InitFlag) -> None:
    sent, found = negotiate(request(NEEDED | (OPTIONAL & 0xFFFFFFFF)), Wish(wished, 0))
    assert sent == answer(NEEDED | (wished & 0xFFFFFFFF))
    assert found.refused == wished & InitFlag.DIRECT_IO_ALLOW_MMAP


def test_high_bits_count_only_behind_init_ext() -> None:
    bits = NEEDED | InitFlag.DIRECT_IO_ALLOW_MMAP
    assert not parse_init(request(bits)).flags & InitFlag.DIRECT_IO_ALLOW_MMAP


@pytest.mark.parametrize(("background", "congestion"), [(0, 0), (1, 1), (12, 9), (64, 48), (65535, 49151)])
def test_max_background_and_the_kernels_own_proportion(background: int, congestion: int) -> None:
    sent, found = negotiate(request(), Wish(NO_FLAGS, background))
    assert sent == answer(NEEDED, background=background, congestion=congestion)
    assert found.max_background == background


@pytest.mark.parametrize(("offered", "spoken"), [(31, 31), (37, 37), (38, 38), (45, 38), (99, 38)])
def test_the_older_protocol_is_spoken(offered: int, spoken: int) -> None:
    sent, found = negotiate(request(minor=offered), Wish(NO_FLAGS, 0))
    assert sent == answer(NEEDED, minor=spoken)
    assert found.kernel == (7, offered)


REFUSED = {
    "nothing": b"",
    "short": request(length=55)[:55],
    "its length": request(length=103),
    "not INIT": request(opcode=1),
    "old protocol": request(major=6),
    "new protocol": request(major=8),
    "old minor": request(minor=30),
    "second word missing": request(length=56)[:56],
    **{f"without {flag!r}": request(ALL & ~flag) for flag in NEEDED},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused(name: str) -> None:
    with pytest.raises(MountFailed):
        negotiate(REFUSED[name], Wish())


@given(st.binary(max_size=120))
def test_no_bytes_make_it_fail_in_another_way(offer: bytes) -> None:
    with contextlib.suppress(MountFailed):
        assert len(negotiate(offer, Wish())[0]) == 80


@pytest.mark.parametrize("flag", [InitFlag.WRITEBACK_CACHE, InitFlag(1 << 40)])
def test_other_flags_cannot_be_wished_for(flag: InitFlag) -> None:
    with pytest.raises(ValueError, match="not to be wished for"):
        Wish(flag)


@pytest.mark.parametrize("count", [-1, 65536])
def test_max_background_has_16_bits(count: int) -> None:
    with pytest.raises(ValueError, match="65535"):
        Wish(NO_FLAGS, count)
