"""The vectors of the layers `header`, `slot`, `size` and `holes`."""

from collections.abc import Iterator, Sequence

from make_files import FILE, ROOT_ZONE
from primitives import mac, sha256
from rows import Blob, Row, flip, row
from sealing import (
    ALIEN,
    ALPHA,
    ALPHA_2,
    CLEAN,
    DIRTY,
    PAGE,
    PLAIN,
    TOKEN,
    VAULT_HASH,
    Cmk,
    FileSpec,
    Holes,
    SlotSpec,
    commitment,
    number,
)

IDENTITY = FILE.identity()
RECIPIENT = IDENTITY[82 : 82 + 83]
MAX_HOLES = 26


def token_inputs() -> Row:
    """The CMKs that the token of the vectors has."""
    return {"cmks": [{"id": cmk.cmk_id.hex(), "version": cmk.version, "key": cmk.key.hex()} for cmk in TOKEN]}


def _header_rows() -> Iterator[tuple[str, bytes, str | FileSpec, str | None, str]]:
    """(name, identity, file or error, fault, layer)."""
    two = FileSpec("two", ROOT_ZONE, (ALPHA, ALPHA_2))
    yield "one-recipient", IDENTITY, FILE, None, ""
    yield "two-recipients", two.identity(), two, None, ""
    eight = FileSpec("eight", ROOT_ZONE, (ALIEN,) * 7 + (ALPHA,))
    yield "eight-recipients-the-last-opens", eight.identity(), eight, None, ""
    for scheme in (2, 3, 4, 99):
        other = ALPHA.bare_recipient(scheme, bytes(scheme))
        yield f"beside-one-of-scheme-{scheme}", FILE.identity(other + RECIPIENT, 2), FILE, None, ""
    yield "first-recipient-damaged", FILE.identity(flip(RECIPIENT, 60) + RECIPIENT, 2), FILE, None, ""
    for field, at, error, layer in (
        ("magic", 0, "damaged", "header"),
        ("magic-end", 7, "damaged", "header"),
        ("zero", 12, "damaged", "header"),
        ("zero-end", 15, "damaged", "header"),
        ("file-id", 16, "damaged", "wrap"),
        ("file-id-end", 31, "damaged", "wrap"),
        ("zone-id", 32, "damaged", "header"),
        ("zone-id-end", 47, "damaged", "header"),
        ("commitment", 48, "damaged", "wrap"),
        ("commitment-end", 79, "damaged", "wrap"),
        ("count-high", 80, "damaged", "header"),
        ("iv", 105, "damaged", "wrap"),
        ("wrapped", 117, "damaged", "wrap"),
        ("tag", 164, "damaged", "wrap"),
        ("rest", 165, "damaged", "header"),
        ("rest-end", 3071, "damaged", "header"),
        ("version", 86, "no-key", "wrap"),
        ("cmk-id", 87, "no-key", "wrap"),
        ("cmk-id-end", 102, "no-key", "wrap"),
    ):
        yield f"flip-{field}", flip(IDENTITY, at), error, f"a bit of {field} flipped", layer
    fault = "a bit of the wrapped length flipped"
    yield "flip-wrapped-length-longer", flip(IDENTITY, 104, 0x80), "damaged", fault, "wrap"
    yield "flip-wrapped-length-shorter", flip(IDENTITY, 104, 0x04), "damaged", fault, "header"
    yield "scheme-0", flip(IDENTITY, 82), "damaged", "scheme 0", "header"
    yield (
        "scheme-3",
        flip(IDENTITY, 82, 2),
        "no-key",
        "the only recipient is of a scheme that this token lacks",
        "wrap",
    )
    yield (
        "version-of-another-key",
        flip(IDENTITY, 86, 3),
        "damaged",
        "wrapped by version 1, says version 2",
        "wrap",
    )
    yield from _recipient_rows(two)


def _recipient_rows(two: FileSpec) -> Iterator[tuple[str, bytes, str | FileSpec, str | None, str]]:
    """The rows about format, flags and recipients, in the same form."""
    yield "format-0", FILE.identity(form=b"\0\0"), "damaged", "format 0", "header"
    yield "format-2", FILE.identity(form=b"\0\2"), "unknown-format", "format 2", "header"
    yield "flag-lowest", FILE.identity(flags=b"\0\1"), "unknown-format", "an unknown flag", "header"
    yield "flag-highest", FILE.identity(flags=b"\x80\0"), "unknown-format", "an unknown flag", "header"
    for count, name in ((0, "none"), (2, "one-more"), (9, "nine")):
        yield (
            f"count-{name}",
            FILE.identity(count=count),
            "damaged",
            f"says {count} recipients, has 1",
            "header",
        )
    nine = FILE.identity(RECIPIENT * 9, 9)
    yield "nine-recipients", nine, "damaged", "9 recipients, each of which opens", "header"
    yield "no-recipient", FILE.identity(b"", 0), "damaged", "no recipient", "header"
    yield "count-one-less", two.identity(count=1), "damaged", "says 1 recipient, has 2", "header"
    yield (
        "wrap-too-short",
        FILE.identity(ALPHA.bare_recipient(1, bytes(59)), 1),
        "damaged",
        "59 wrapped bytes",
        "wrap",
    )
    long = ALPHA.bare_recipient(1, bytes(3000))
    yield (
        "recipient-beyond-the-identity",
        FILE.identity(long, 1)[:3072],
        "damaged",
        "longer than its place",
        "header",
    )
    kind = ALPHA.recipient(FILE.dek, 2, ROOT_ZONE.zone_id, FILE.file_id, VAULT_HASH)
    yield "wrapped-as-a-zone-secret", FILE.identity(kind), "damaged", "wrapped with kind 2", "wrap"
    vault = ALPHA.recipient(FILE.dek, 1, ROOT_ZONE.zone_id, FILE.file_id, sha256(b"another vault"))
    yield (
        "wrapped-for-another-vault",
        FILE.identity(vault),
        "damaged",
        "wrapped with another vault hash",
        "wrap",
    )
    yield (
        "other-secret",
        FILE.identity(_uncommitted(ALPHA)),
        "damaged",
        "a secret that is not committed to",
        "wrap",
    )


def _uncommitted(cmk: Cmk) -> bytes:
    """Another secret, wrapped with a context that names the commitment of this file's DEK."""
    return cmk.recipient(bytes(32), 1, ROOT_ZONE.zone_id, FILE.file_id, VAULT_HASH, committed=commitment(FILE.dek))


def header_vectors(blob: Blob) -> tuple[Row, list[Row]]:
    """(common inputs, vectors) of layer `header`: identity -> DEK and what follows from it."""
    common = {
        "zone_id": ROOT_ZONE.zone_id.hex(),
        "zone_secret": ROOT_ZONE.secret.hex(),
        "vault_hash": VAULT_HASH.hex(),
        **token_inputs(),
    }
    rows = []
    for name, identity, outcome, fault, layer in _header_rows():
        expect: Row | str = outcome if isinstance(outcome, str) else _keys(outcome, identity)
        rows.append(row(name, {"identity": blob(identity)}, expect, fault, layer))
    return common, rows


def _keys(file: FileSpec, identity: bytes) -> Row:
    return {
        "file_id": file.file_id.hex(),
        "recipients": int.from_bytes(identity[80:82], "big"),
        "identity_hash": sha256(identity[:80]).hex(),
        "content_key": file.content_key.hex(),
        "header_key": file.header_key.hex(),
    }


SlotRow = tuple[str, bytes, str | tuple[SlotSpec, bool], str | None]
OLD = SlotSpec(1, CLEAN, 100, 3, ((2, 1),))
NEW = SlotSpec(2, CLEAN, 5000, 4, ((0, 1), (7, 9)))


def _both(first: bytes, second: bytes) -> bytes:
    """Both slots with their MACs, whatever their fields."""
    return FILE.slot(0, first) + FILE.slot(1, second)


def _good_slots() -> Iterator[SlotRow]:
    """Pairs of slots without a fault: (name, both, (the one that counts, clean), None)."""
    dirty = SlotSpec(2, DIRTY, 5000, 4)
    full = SlotSpec(2, CLEAN, PLAIN * 60, 4, tuple((2 * n, 1) for n in range(MAX_HOLES)))
    top = SlotSpec((1 << 64) - 1, DIRTY, (1 << 63) - 1, (1 << 32) - 1)
    yield "clean", _both(OLD.raw(), NEW.raw()), (NEW, True), None
    yield "dirty", _both(OLD.raw(), dirty.raw()), (dirty, False), None
    yield "slot-0-counts", _both(NEW.raw(), OLD.raw()), (NEW, True), None
    yield "26-ranges", _both(OLD.raw(), full.raw()), (full, True), None
    yield "largest-values", _both(OLD.raw(), top.raw()), (top, False), None
    new = SlotSpec(2, CLEAN, 0)
    yield "new-file", _both(SlotSpec(1, CLEAN, 0).raw(), new.raw()), (new, True), None


def _bad_fields() -> Iterator[tuple[str, bytes, str]]:
    """Slots whose MAC is right and a field is not: (name, 480 bytes, fault)."""
    yield "state-0", SlotSpec(2, 0, 5000).raw(), "state 0"
    yield "state-3", SlotSpec(2, 3, 5000).raw(), "state 3"
    yield "27-ranges", SlotSpec(2, CLEAN, 5000).raw(count=b"\x1b"), "27 ranges"
    yield "zero-high", SlotSpec(2, CLEAN, 5000).raw(zero=b"\1\0"), "bytes 14 and 15"
    yield "zero-low", SlotSpec(2, CLEAN, 5000).raw(zero=b"\0\1"), "bytes 14 and 15"
    yield "reserved-first", SlotSpec(2, CLEAN, 5000).raw(reserved=b"\1" + bytes(31)), "reserved bytes"
    yield "reserved-last", SlotSpec(2, CLEAN, 5000).raw(reserved=bytes(31) + b"\1"), "reserved bytes"
    yield (
        "after-the-ranges",
        flip(SlotSpec(2, CLEAN, 5000, 4, ((0, 1),)).raw(), 72),
        "a byte after the ranges",
    )
    yield "last-byte", flip(NEW.raw(), 479), "a byte after the ranges"
    for name, holes in (
        ("descending", ((7, 1), (2, 1))),
        ("overlapping", ((2, 3), (4, 1))),
        ("same-twice", ((2, 3), (2, 3))),
        ("adjacent", ((2, 3), (5, 1))),
        ("of-no-block", ((2, 0),)),
        ("of-no-block-then-more", ((2, 0), (5, 1))),
    ):
        yield f"ranges-{name}", SlotSpec(2, CLEAN, 5000, 4, holes).raw(), f"ranges: {name}"


def _bad_slots() -> Iterator[SlotRow]:
    """Pairs with a fault; where only one is damaged the other one counts and is dirty."""
    good = _both(OLD.raw(), NEW.raw())
    fields = {
        "sequence": 0,
        "generation": 8,
        "state": 12,
        "count": 13,
        "zero": 14,
        "size": 16,
        "reserved": 24,
    }
    fields |= {"range-first": 56, "range-count": 64, "padding": 300, "mac": 480, "mac-end": 511}
    for field, at in fields.items():
        yield f"flip-newer-{field}", flip(good, 512 + at), (OLD, False), f"a bit of {field} flipped"
        yield f"flip-older-{field}", flip(good, at), (NEW, False), f"a bit of {field} flipped"
    for name, raw, fault in _bad_fields():
        yield f"newer-{name}", _both(OLD.raw(), raw), (OLD, False), fault
        yield f"older-{name}", _both(raw, NEW.raw()), (NEW, False), fault
    yield "both-flipped", flip(flip(good, 0), 512), "damaged", "a bit of both slots flipped"
    yield "both-zeros", bytes(1024), "damaged", "both slots zeroed"
    yield "newer-zeros", good[:512] + bytes(512), (OLD, False), "a slot zeroed"
    same = SlotSpec(1, CLEAN, 5000)
    yield "one-sequence", _both(OLD.raw(), same.raw()), "damaged", "two slots with one sequence"
    yield "one-sequence-identical", _both(OLD.raw(), OLD.raw()), "damaged", "two slots with one sequence"
    yield "exchanged", good[512:] + good[:512], "damaged", "the slots exchanged"
    yield "copied", good[:512] + good[:512], (OLD, False), "a slot in the place of the other"
    other = FileSpec("twin", ROOT_ZONE)
    foreign = other.slot(0, OLD.raw()) + other.slot(1, NEW.raw())
    yield "of-another-file", foreign, "damaged", "slots of another file"
    identity = flip(IDENTITY, 40)
    moved = FILE.slot(0, OLD.raw(), identity) + FILE.slot(1, NEW.raw(), identity)
    yield "of-another-identity", moved, "damaged", "slots sealed for another identity"
    keyed = b"".join(
        raw + mac(FILE.dek, sha256(IDENTITY[:80]) + number(at, 1) + raw)
        for at, raw in enumerate((OLD.raw(), NEW.raw()))
    )
    yield "under-the-dek", keyed, "damaged", "sealed without the zone's header secret"


def slot_vectors(blob: Blob) -> tuple[Row, list[Row]]:
    """(common inputs, vectors) of layer `slot`: 1024 bytes -> the state that counts."""
    rows = []
    for name, both, outcome, fault in (*_good_slots(), *_bad_slots()):
        expect: Row | str
        if isinstance(outcome, str):
            expect = outcome
        else:
            slot, clean = outcome
            holes = [list(one) for one in slot.holes]
            expect = {"sequence": slot.sequence, "generation": slot.generation, "clean": clean}
            expect |= {"size": slot.size, "holes": holes}
        rows.append(row(name, {"slots": blob(both)}, expect, fault, "slot"))
    common = {"header_key": FILE.header_key.hex(), "identity_hash": sha256(IDENTITY[:80]).hex()}
    return common, rows


def size_vectors() -> list[Row]:
    """Layer `size`: plain -> cipher, and cipher -> plain or null."""
    worked = {0: 4096, 1: 8193, 4047: 12239, 4048: 8192, 4049: 12289, 4096: 12336}
    worked |= {1 << 20: 1069200, 5 << 30: 5432377888, 8096: 12288, 8095: 16335, 3 * PLAIN + 7: 20487}
    rows = [row(f"plain-{plain}", {"plain": plain}, {"cipher": cipher}) for plain, cipher in worked.items()]
    rows += [row(f"cipher-{cipher}", {"cipher": cipher}, {"plain": plain}) for plain, cipher in worked.items()]
    none = (0, 1, 4095, 4097, 8191, PAGE * 2 + PLAIN, PAGE * 3 - 1, PAGE * 5 + PLAIN, PAGE * 6 - 1)
    rows += [row(f"cipher-{length}", {"cipher": length}, {"plain": None}) for length in none]
    return rows


def merge(holes: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """The two ranges with the smallest gap become one, until there are at most `limit`."""
    ranges = list(holes)
    while len(ranges) > limit:
        gaps = [ranges[at + 1][0] - sum(ranges[at]) for at in range(len(ranges) - 1)]
        at = gaps.index(min(gaps))
        first, last = ranges[at][0], sum(ranges.pop(at + 1))
        ranges[at] = (first, last - first)
    return ranges


def _spaced(gaps: Sequence[int]) -> Holes:
    """Ranges of two blocks with these gaps."""
    at, ranges = 3, [(3, 2)]
    for gap in gaps:
        at += 2 + gap
        ranges.append((at, 2))
    return ranges


def hole_vectors() -> list[Row]:
    """Layer `holes`: what a writer lists; no two gaps are equal, so there is one answer."""
    rows = []
    for count in (0, 1, 25, 26, 27, 28, 40):
        gaps = [1 + (n * 7) % 41 for n in range(1, count)]
        wanted = _spaced(gaps) if count else []
        listed = [list(one) for one in merge(wanted, MAX_HOLES)]
        rows.append(row(f"{count}-ranges", {"ranges": [list(one) for one in wanted]}, {"ranges": listed}))
    return rows
