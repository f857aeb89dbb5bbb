"""INIT, parsed and edited: what was offered is added, everything else and every surprise stays as it is."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs.fs.kernel_init import (
    ADDABLE,
    ANSWER_BYTES,
    NO_FLAGS,
    InitFlag,
    InitMessageError,
    Wish,
    negotiate,
    parse_answer,
    parse_init,
)

UNIQUE = 0x1122334455667788
FLAGS = list(ADDABLE)
SUBSETS = [sum(chosen, NO_FLAGS) for size in range(6) for chosen in itertools.combinations(FLAGS, size)]
LIBFUSE = InitFlag.WRITEBACK_CACHE | InitFlag.MAX_PAGES | InitFlag.INIT_EXT | (1 << 5)
TAIL = bytes(range(28))  # fields of a protocol newer than 7.38


def request(
    flags: int = LIBFUSE | ADDABLE, *, length: int = 104, opcode: int = 26, major: int = 7, minor: int = 45
) -> bytes:
    """The kernel's INIT, written from linux/fuse.h and not with the code under test."""
    header = struct.pack("<IIQQIIIHH", length, opcode, UNIQUE, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("<IIIII", major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32) + bytes(44)


def answer(
    flags: int = LIBFUSE,
    *,
    length: int = 80,
    error: int = 0,
    unique: int = UNIQUE,
    major: int = 7,
    background: int = 0,
    max_write: int = 1 << 20,
    time_gran: int = 1,
    pages: int = 256,
    tail: bytes = TAIL,
) -> bytes:
    """libfuse's answer, likewise."""
    body = struct.pack("<IIII", major, 38, 131072, flags & 0xFFFFFFFF)
    body += struct.pack("<HHII", background, background * 3 // 4, max_write, time_gran)
    body += struct.pack("<HHI", pages, 0, flags >> 32)
    return struct.pack("<IiQ", length, error, unique) + body + tail


def test_the_messages_have_the_sizes_of_linux_fuse_h() -> None:
    assert (len(request()), len(answer()), ANSWER_BYTES) == (104, 80, 80)


@pytest.mark.parametrize("offered", SUBSETS)
def test_exactly_what_is_wished_for_and_offered_is_added(offered: InitFlag) -> None:
    for wished in SUBSETS:
        edited, found = negotiate(request(LIBFUSE | offered), answer(), Wish(wished, 0))
        granted = wished & offered
        assert edited == answer(LIBFUSE | granted)
        assert found.flags == LIBFUSE | granted
        assert found.refused == wished & ~offered
        assert found.fallback == ""


@pytest.mark.parametrize("wished", SUBSETS)
def test_a_kernel_without_a_second_word_of_flags_gets_none(wished: InitFlag) -> None:
    old = LIBFUSE & ~InitFlag.INIT_EXT
    offer = request(old | (ADDABLE & 0xFFFFFFFF))
    edited, found = negotiate(offer, answer(old), Wish(wished, 0))
    assert edited == answer(old | (wished & 0xFFFFFFFF))
    assert found.refused == wished & InitFlag.DIRECT_IO_ALLOW_MMAP


def test_high_bits_count_only_behind_init_ext() -> None:
    bits = LIBFUSE & ~InitFlag.INIT_EXT | InitFlag.DIRECT_IO_ALLOW_MMAP
    assert not parse_init(request(bits)).flags & InitFlag.DIRECT_IO_ALLOW_MMAP
    with pytest.raises(InitMessageError, match="INIT_EXT"):
        parse_answer(answer(bits))


def test_init_ext_is_added_with_the_first_high_flag() -> None:
    plain = LIBFUSE & ~InitFlag.INIT_EXT
    edited, _ = negotiate(request(), answer(plain), Wish(InitFlag.DIRECT_IO_ALLOW_MMAP, 0))
    assert edited == answer(plain | InitFlag.INIT_EXT | InitFlag.DIRECT_IO_ALLOW_MMAP)


@pytest.mark.parametrize(
    ("libfuse", "wished", "background", "congestion"),
    [
        (0, 0, 0, 0),
        (0, 1, 1, 1),
        (0, 64, 64, 48),
        (12, 64, 64, 48),
        (100, 64, 100, 75),
        (0, 65535, 65535, 49151),
    ],
)
def test_max_background_is_raised_and_never_lowered(
    libfuse: int, wished: int, background: int, congestion: int
) -> None:
    edited, found = negotiate(request(), answer(background=libfuse), Wish(NO_FLAGS, wished))
    parsed = parse_answer(edited)
    assert (parsed.max_background, parsed.congestion_threshold) == (background, congestion)
    assert found.max_background == background


@pytest.mark.parametrize(
    ("max_write", "pages", "expected"),
    [(1 << 20, 256, 256), (1 << 20, 32, 256), (1 << 17, 32, 32), (1 << 22, 32, 256), (1 << 22, 1024, 1024)],
)
def test_max_pages_fits_what_libfuse_can_receive(max_write: int, pages: int, expected: int) -> None:
    edited, found = negotiate(request(), answer(max_write=max_write, pages=pages), Wish())
    assert parse_answer(edited).max_pages == found.max_pages == expected
    assert parse_answer(edited).max_write == found.max_write == max_write


@pytest.mark.parametrize("side", ["offer", "answer"])
def test_max_pages_stays_unless_both_sides_know_it(side: str) -> None:
    without = LIBFUSE & ~InitFlag.MAX_PAGES
    offer, reply = (without, LIBFUSE) if side == "offer" else (LIBFUSE, without)
    edited, _ = negotiate(request(offer), answer(reply, pages=0), Wish(NO_FLAGS, 0))
    assert edited == answer(reply, pages=0)


@pytest.mark.parametrize("time_gran", [0, 1, 1000, 1_000_000_000])
def test_times_are_kept_to_the_nanosecond(time_gran: int) -> None:
    edited, _ = negotiate(request(), answer(time_gran=time_gran), Wish())
    assert parse_answer(edited).time_gran == 1


SURPRISES = {
    "no request": (b"", answer()),
    "short request": (request(length=55)[:55], answer()),
    "length of request": (request(length=103), answer()),
    "not INIT": (request(opcode=1), answer()),
    "old protocol": (request(major=6), answer()),
    "new protocol": (request(major=8), answer()),
    "second word missing": (request(length=56)[:56], answer()),
    "no answer": (request(), b""),
    "short answer": (request(), answer(length=79)[:79]),
    "longer answer": (request(), answer(length=84) + bytes(4)),
    "compat answer": (request(), answer(length=40)[:40]),
    "length of answer": (request(), answer(length=81)),
    "refusal": (request(), struct.pack("<IiQ", 16, -71, UNIQUE)),
    "refusal with body": (request(), answer(error=-71)),
    "other request": (request(), answer(unique=UNIQUE + 1)),
    "answer's protocol": (request(), answer(major=8)),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_a_surprise_leaves_the_answer_and_says_why(name: str) -> None:
    offer, reply = SURPRISES[name]
    edited, found = negotiate(offer, reply, Wish())
    assert edited == reply
    assert found.fallback
    assert found.flags == NO_FLAGS


@pytest.mark.parametrize("cut", range(ANSWER_BYTES))
def test_every_truncation_of_the_answer_goes_on_unchanged(cut: int) -> None:
    reply = answer()[:cut]
    assert negotiate(request(), reply, Wish())[0] == reply


@given(st.binary(max_size=120), st.binary(max_size=96))
def test_no_bytes_make_it_fail(offer: bytes, reply: bytes) -> None:
    assert len(negotiate(offer, reply, Wish())[0]) == len(reply)


@given(st.binary(min_size=64, max_size=64))
def test_what_parses_is_written_back_the_same(body: bytes) -> None:
    reply = struct.pack("<IiQ", 80, 0, 1) + b"\7\0\0\0" + body[4:]
    try:
        parsed = parse_answer(reply)
    except InitMessageError:
        return
    assert parsed.to_bytes() == reply


@pytest.mark.parametrize("flag", [InitFlag.POSIX_ACL, InitFlag.WRITEBACK_CACHE, InitFlag(1 << 40)])
def test_other_flags_cannot_be_wished_for(flag: InitFlag) -> None:
    with pytest.raises(ValueError, match="not to be added"):
        Wish(flag)


@pytest.mark.parametrize("count", [-1, 65536])
def test_max_background_has_16_bits(count: int) -> None:
    with pytest.raises(ValueError, match="65535"):
        Wish(NO_FLAGS, count)
