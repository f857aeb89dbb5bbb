"""The vectors of the layer `file`, and the files under `files/` that they are cut from."""

from typing import Any

from primitives import sha256
from rows import Blob, Row, flip, row
from sealing import (
    ALIEN,
    ALPHA,
    ALPHA_2,
    CLEAN,
    DIRTY,
    PAGE,
    PLAIN,
    FileSpec,
    Holes,
    SlotSpec,
    ZoneSpec,
    rnd,
    text,
)

ROOT_ZONE = ZoneSpec("root", ALPHA)
OTHER_ZONE = ZoneSpec("other", ALPHA)
TAIL = 3 * PLAIN + 7  # plain size of the file that most vectors change: three full blocks and a short one
FILE = FileSpec("main", ROOT_ZONE)
CONTENT = text("main", TAIL)
BLOCKS = FILE.blocks(CONTENT)
SIZES = (0, 1, 4047, 4048, 4049, 4096, 8096, 8097, TAIL)
SPARSE = FileSpec("sparse", ROOT_ZONE)
MANY = [(1 + 2 * n, 1) for n in range(26)]  # 26 holes of one block, each after a block of data

Outcome = int | tuple[int, list[int]] | str


def sparse_text(label: str, size: int, holes: Holes) -> bytes:
    """As `text`, with zeros in the holes."""
    plain = bytearray(text(label, size))
    for first, count in holes:
        end = min(size, PLAIN * (first + count))
        plain[PLAIN * first : end] = bytes(end - PLAIN * first)
    return bytes(plain)


def cipher_files() -> dict[str, bytes]:
    """Name under `files/` -> cipher bytes."""
    made = {f"size-{size}": FileSpec(f"size {size}", ROOT_ZONE).settled(text(f"size {size}", size)) for size in SIZES}
    made["main"] = FILE.settled(CONTENT)
    made["twin"] = FileSpec("twin", ROOT_ZONE).settled(text("twin", TAIL))
    made["other-zone"] = FileSpec("elsewhere", OTHER_ZONE).settled(text("elsewhere", 100))
    made["sparse"] = SPARSE.settled(sparse_text("sparse", PLAIN * 53 + 9, MANY), MANY)
    return made


def _result(outcome: Outcome, plain: bytes) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {"error": outcome}
    size, unreadable = (outcome, []) if isinstance(outcome, int) else outcome
    pieces = [plain[at : min(at + PLAIN, size)] for at in range(0, size, PLAIN)]
    read = b"".join(piece for number, piece in enumerate(pieces) if number not in unreadable)
    return {"size": size, "sha256": sha256(read).hex(), "unreadable": unreadable}


class FileVectors:
    """Collects the vectors of layer `file`."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self.rows: list[Row] = []

    def add(
        self,
        name: str,
        cipher: bytes,
        recovering: Outcome,
        otherwise: Outcome | None = None,
        *,
        plain: bytes = CONTENT,
        fault: str | None = None,
        by: str = "block",
    ) -> None:
        """A vector; without `otherwise` both kinds of session arrive at the same."""
        both = {
            "recovering": _result(recovering, plain),
            "otherwise": _result(recovering if otherwise is None else otherwise, plain),
        }
        self.rows.append(row(name, {"cipher": self._blob(cipher)}, both, fault, by))


def head(*slots: SlotSpec, file: FileSpec = FILE) -> bytes:
    """A header page of `file` with these slots."""
    return file.identity() + file.slots(*slots)


def clean(size: int = TAIL, generation: int = 1) -> bytes:
    """A header page of the main file, clean."""
    return head(SlotSpec(2, CLEAN, size, generation))


def dirty(floor: int, holes: Holes = (), generation: int = 1) -> bytes:
    """A header page of the main file, dirty."""
    return head(SlotSpec(2, DIRTY, floor, generation, holes))


def _file(*pages: bytes, rem: int = 0) -> bytes:
    return b"".join(pages) + bytes(rem)


def _sizes(add: FileVectors) -> None:
    for name, cipher in cipher_files().items():
        if name.startswith("size-"):
            size = int(name[5:])
            add.add(f"clean-{size}", cipher, size, plain=text(f"size {size}", size))
    two = FileSpec("two recipients", ROOT_ZONE, (ALPHA, ALPHA_2)).settled(b"both")
    add.add("two-recipients", two, 4, plain=b"both")
    alien = FileSpec("alien first", ROOT_ZONE, (ALIEN, ALPHA)).settled(b"second opens")
    add.add("first-recipient-of-another-token", alien, 12, plain=b"second opens")
    alien = FileSpec("alien only", ROOT_ZONE, (ALIEN,)).settled(b"closed")
    add.add("no-recipient-of-this-token", alien, "no-key", fault="the only CMK is in another token", by="wrap")
    kw = FILE.identity(ALPHA.bare_recipient(2, bytes(40)) + FILE.identity()[82 : 82 + 83], 2)
    kw += FILE.slots(SlotSpec(2, CLEAN, TAIL))
    add.add("first-recipient-of-a-reserved-scheme", _file(kw, *BLOCKS, rem=7), TAIL)
    full = FileSpec("all slots in use", ROOT_ZONE, (ALPHA, ALPHA_2) * 4).settled(b"eight")
    add.add("eight-recipients", full, 5, plain=b"eight")
    add.add("tail-bytes-not-zero-are-never-read", _file(clean(), *BLOCKS) + b"garbage", TAIL)
    ahead = [*BLOCKS[:2], FILE.block(2, CONTENT[2 * PLAIN : 3 * PLAIN], 2), BLOCKS[3]]
    add.add("block-one-generation-ahead", _file(clean(), *ahead, rem=7), TAIL)
    later = head(SlotSpec(9, CLEAN, TAIL, 5), SlotSpec(8, DIRTY, 0, 5))
    add.add("slot-0-counts-and-blocks-are-older", _file(later, *BLOCKS, rem=7), TAIL)


def _sparse(add: FileVectors) -> None:
    for name, size, holes in (
        ("one-range", PLAIN * 4 + 5, [(1, 2)]),
        ("range-at-the-start", PLAIN * 2 + 5, [(0, 1)]),
        ("range-at-the-end", PLAIN * 4, [(2, 2)]),
        ("ends-partly-in-a-hole", PLAIN * 3 + 5, [(2, 1)]),
        ("range-over-a-partial-last-block", PLAIN * 3 + 5, [(2, 2)]),
        ("all-hole", PLAIN * 3, [(0, 3)]),
        ("all-hole-and-partial", PLAIN * 3 + 5, [(0, 3)]),
        ("all-hole-range-beyond-the-end", PLAIN * 2, [(0, 1 << 40)]),
        ("two-ranges", PLAIN * 5, [(1, 1), (3, 1)]),
        ("26-ranges", PLAIN * 53 + 9, MANY),
    ):
        plain = sparse_text("sparse", size, holes)
        add.add(f"sparse-{name}", SPARSE.settled(plain, holes), size, plain=plain)
    wanted = [*MANY[:-1], (51, 2), (54, 1), (58, 1)]  # 28 ranges, gaps of 1 and, at the end, of 1 and 3
    size = PLAIN * 60 + 9
    plain = sparse_text("sparse", size, wanted)
    listed = [(1, 5), *MANY[3:-1], (51, 2), (54, 1), (58, 1)]  # the first three became one
    body = b"".join(SPARSE.blocks(plain, wanted)) + bytes(9)
    merged = head(SlotSpec(2, CLEAN, size, holes=listed), file=SPARSE)
    add.add("sparse-28-ranges-merged-into-26", merged + body, size, plain=plain)
    fewer = head(SlotSpec(2, CLEAN, size, holes=listed[1:]), file=SPARSE)
    fault = "a hole that is not listed"
    add.add("sparse-hole-not-listed", fewer + body, (size, [1, 3, 5]), plain=plain, fault=fault)


def _clean_against_length(add: FileVectors) -> None:
    """The clean rows of the table in 8.4."""
    for name, length in (
        ("a-byte", 7 + PAGE * 5 - 1),
        ("the-tail", PAGE * 5 - PAGE + 7),
        ("a-block-and-tail", PAGE * 4),
        ("all-blocks", PAGE),
        ("half-a-block", PAGE * 4 + 50),
        ("to-no-settled-size", PAGE * 4 + PLAIN),
    ):
        whole = _file(clean(), *BLOCKS, rem=7)
        add.add(f"clean-cut-{name}", whole[:length], "damaged", fault=f"cut short: {name}", by="size")
    last = CONTENT[3 * PLAIN :]
    lasts: list[tuple[str, bytes, Outcome]] = [
        ("as-needed", BLOCKS[3], TAIL),
        ("longer", FILE.block(3, last + b"beyond"), TAIL),
        ("shorter", FILE.block(3, last[:6]), (TAIL, [3])),
        ("damaged", flip(BLOCKS[3], 100), (TAIL, [3])),
    ]
    for name, block, outcome in lasts:
        blocks = [*BLOCKS[:3], block]
        kind = None if outcome == TAIL else f"last block {name}"
        add.add(f"clean-last-block-{name}", _file(clean(), *blocks, rem=7), outcome, fault=kind)
        fault = f"backing longer than the slot says, last block {name}"
        for how, rem in (("rem-more", 8), ("without-rem", 0), ("no-settled-size", PLAIN + 1)):
            cipher = _file(clean(), *blocks, rem=rem)
            add.add(f"clean-more-{how}-last-block-{name}", cipher, outcome, "damaged", fault=fault, by="size")
    more = _file(clean(2 * PLAIN), *BLOCKS, rem=7)
    add.add("clean-more-blocks", more, 2 * PLAIN, "damaged", fault="blocks beyond the size of the slot", by="size")
    for rem in (1, 4095):
        fault = "size 0 and less than a block"
        add.add(f"clean-0-and-{rem}", _file(clean(0), rem=rem), 0, "damaged", fault=fault, by="size")


def _no_header(add: FileVectors) -> None:
    """The last rows of the table in 8.4, and headers that are not this file's."""
    body = _file(*BLOCKS, rem=7)
    add.add("length-0", b"", 0, "damaged", fault="cut to nothing", by="header")
    add.add("header-zeros", bytes(PAGE) + body, 0, "damaged", fault="header page zeroed", by="header")
    add.add("header-zeros-alone", bytes(PAGE), 0, "damaged", fault="header page zeroed", by="header")
    add.add("header-cut", clean()[:1000], "damaged", fault="part of a header page", by="header")
    add.add("header-cut-zeros", bytes(1000), "damaged", fault="part of a page of zeros", by="header")
    twin = cipher_files()["twin"]
    add.add(
        "header-of-another-file",
        twin[:PAGE] + body,
        (TAIL, [0, 1, 2, 3]),
        fault="header page of another file",
    )
    fault = "identity of another file, slots of this one"
    add.add("identity-of-another-file", twin[:3072] + clean()[3072:] + body, "damaged", fault=fault, by="slot")
    fault = "slots of another file"
    add.add("slots-of-another-file", clean()[:3072] + twin[3072:PAGE] + body, "damaged", fault=fault, by="slot")
    fault = "file of another zone"
    add.add("file-of-another-zone", cipher_files()["other-zone"], "damaged", fault=fault, by="header")
    moved = FileSpec("elsewhere", OTHER_ZONE)
    forged = moved.identity(zone_id=ROOT_ZONE.zone_id) + cipher_files()["other-zone"][3072:]
    fault = "rewrapped into this zone without its header secret"
    add.add("file-rewrapped-into-this-zone", forged, "damaged", fault=fault, by="slot")


def _blocks_replaced(add: FileVectors) -> None:
    """Each kind of wrong block, in a clean file."""
    twin = FileSpec("twin", ROOT_ZONE).blocks(text("twin", TAIL))
    middle = CONTENT[PLAIN : 2 * PLAIN]
    for name, blocks, unreadable, fault in (
        ("swapped", [BLOCKS[1], BLOCKS[0], *BLOCKS[2:]], [0, 1], "two blocks exchanged"),
        ("repeated", [BLOCKS[0], BLOCKS[0], *BLOCKS[2:]], [1], "a block repeated"),
        ("of-another-file", [BLOCKS[0], twin[1], *BLOCKS[2:]], [1], "a block of another file"),
        ("zeroed", [BLOCKS[0], bytes(PAGE), *BLOCKS[2:]], [1], "a block zeroed outside of a hole"),
        ("short", [BLOCKS[0], FILE.block(1, middle[:-1]), *BLOCKS[2:]], [1], "a short block within the file"),
        (
            "two-ahead",
            [BLOCKS[0], FILE.block(1, middle, 3), *BLOCKS[2:]],
            [1],
            "a block two generations ahead",
        ),
        ("flipped", [BLOCKS[0], flip(BLOCKS[1], 4000), *BLOCKS[2:]], [1], "a bit of a block flipped"),
    ):
        add.add(f"block-{name}", _file(clean(), *blocks, rem=7), (TAIL, unreadable), fault=fault)


def _dirty_ends(add: FileVectors) -> None:
    """Where a dirty file ends, without a fault: what a crash leaves."""
    for floor in (0, 1, PLAIN - 1, PLAIN, PLAIN + 1, 3 * PLAIN, 3 * PLAIN + 6, TAIL):
        add.add(f"dirty-{floor}-settled", _file(dirty(floor), *BLOCKS, rem=7), TAIL)
        add.add(f"dirty-{floor}-without-rem", _file(dirty(floor), *BLOCKS), TAIL)
    add.add("dirty-rem-of-another-length", _file(dirty(5), *BLOCKS, rem=9), TAIL)
    add.add("dirty-no-settled-size", _file(dirty(5), *BLOCKS, rem=PLAIN + 3), TAIL)
    add.add("dirty-0-header-alone", dirty(0), 0)
    add.add("dirty-0-part-of-a-block", _file(dirty(0), BLOCKS[0][:4095]), 0)
    add.add("dirty-part-of-a-block", _file(dirty(7), *BLOCKS[:3], BLOCKS[3][:600]), 3 * PLAIN)
    add.add("dirty-full-blocks-only", _file(dirty(7), *BLOCKS[:3]), 3 * PLAIN)
    add.add("dirty-floor-at-the-end", _file(dirty(3 * PLAIN), *BLOCKS[:3]), 3 * PLAIN)
    ahead = [FILE.block(n, CONTENT[PLAIN * n :][:PLAIN], 2) for n in range(4)]
    add.add("dirty-blocks-one-ahead", _file(dirty(7), *ahead), TAIL)
    torn = [BLOCKS[0], FILE.block(1, CONTENT[PLAIN : PLAIN + 500]), *BLOCKS[2:]]
    for floor in (0, PLAIN + 1, PLAIN + 499, PLAIN + 500):
        add.add(f"dirty-{floor}-ends-in-a-short-block", _file(dirty(floor), *torn), PLAIN + 500)


def _dirty_gaps(add: FileVectors) -> None:
    """A block beyond the floor that is lost ends the file; below the floor it is damage."""
    twin = FileSpec("twin", ROOT_ZONE).blocks(text("twin", TAIL))
    ahead = FILE.block(1, CONTENT[PLAIN : 2 * PLAIN], 3)
    for name, lost in (
        ("zeros", bytes(PAGE)),
        ("garbage", rnd("garbage", PAGE)),
        ("flipped", flip(BLOCKS[1], 31)),
        ("swapped", BLOCKS[2]),
        ("of-another-file", twin[1]),
        ("two-ahead", ahead),
    ):
        cipher = [BLOCKS[0], lost, *BLOCKS[2:]]
        for floor in (0, 7, PLAIN):
            add.add(f"dirty-{floor}-lost-block-{name}", _file(dirty(floor), *cipher), PLAIN)
        inside = PLAIN + 10
        fault = f"a block that holds bytes below the floor: {name}"
        add.add(f"dirty-{inside}-block-{name}", _file(dirty(inside), *cipher), (inside, [1]), fault=fault)
        below = (TAIL, [1])
        add.add(f"dirty-{2 * PLAIN}-block-{name}", _file(dirty(2 * PLAIN), *cipher, rem=7), below, fault=fault)
    short = [BLOCKS[0], FILE.block(1, CONTENT[PLAIN : PLAIN + 9]), *BLOCKS[2:]]
    inside = PLAIN + 10
    fault = "a block that ends below the floor"
    add.add("dirty-block-shorter-than-the-floor", _file(dirty(inside), *short), (inside, [1]), fault=fault)
    first = [flip(BLOCKS[0], 99), *BLOCKS[1:]]
    add.add("dirty-0-first-block-lost", _file(dirty(0), *first), 0)
    add.add("dirty-below-the-floor-flipped", _file(dirty(PLAIN), *first), (TAIL, [0]), fault="a bit flipped")


def _dirty_lengths(add: FileVectors) -> None:
    for name, length in (
        ("block", PAGE * 3),
        ("header", PAGE),
        ("part", PAGE * 4 + 6),
        ("rem", PAGE * 5 + 6),
    ):
        cipher = _file(dirty(TAIL), *BLOCKS, rem=7)[:length]
        fault = f"shorter than the floor says: {name}"
        add.add(f"dirty-less-{name}", cipher, "damaged", fault=fault, by="size")
    add.add("dirty-length-0", b"", 0, "damaged", fault="cut to nothing", by="header")


def _dirty_holes(add: FileVectors) -> None:
    holes = [(1, 2)]
    plain = sparse_text("main", TAIL, holes)
    zeros = [BLOCKS[0], bytes(PAGE), bytes(PAGE), BLOCKS[3]]
    for floor in (0, PLAIN + 5, TAIL):
        add.add(f"dirty-{floor}-over-a-hole", _file(dirty(floor, holes), *zeros), TAIL, plain=plain)
    add.add("dirty-zeros-in-no-hole", _file(dirty(7), *zeros), PLAIN, plain=plain)
    add.add("dirty-hole-half-listed", _file(dirty(7, [(1, 1)]), *zeros), 2 * PLAIN, plain=plain)
    end = 3 * PLAIN  # a block in a listed hole counts as full, whatever `rem` says
    rems = (
        ("with-rem", 50),
        ("without-rem", 0),
        ("no-settled-size", PLAIN),
        ("rem-of-all-but-a-byte", PLAIN - 1),
    )
    for name, rem in rems:
        for floor in (0, PLAIN + 5, 2 * PLAIN + 50):
            cipher = _file(dirty(floor, holes), *zeros[:3], rem=rem)
            add.add(f"dirty-{floor}-ends-in-a-hole-{name}", cipher, end, plain=plain)
        cipher = _file(dirty(7, [(1, 1 << 30)]), *zeros[:3], rem=rem)
        add.add(f"dirty-hole-listed-beyond-the-end-{name}", cipher, end, plain=plain)


def _slots(add: FileVectors) -> None:
    """One slot damaged: the other one is read as dirty."""
    page = head(SlotSpec(1, CLEAN, TAIL), SlotSpec(2, CLEAN, TAIL))
    for slot, at in ((0, 3072), (1, 3584)):
        cipher = _file(flip(page, at + 500), *BLOCKS, rem=7)
        add.add(f"slot-{slot}-damaged", cipher, TAIL, fault="a slot's MAC", by="slot")
        plain = CONTENT + b"more"
        cipher = _file(flip(page, at + 500), *BLOCKS[:3], FILE.block(3, plain[3 * PLAIN :]))
        add.add(f"slot-{slot}-damaged-file-longer", cipher, TAIL + 4, plain=plain, fault="a slot's MAC", by="slot")
    both = flip(flip(page, 3072), 3584)
    add.add("both-slots-damaged", _file(both, *BLOCKS, rem=7), "damaged", fault="both slots", by="slot")
    equal = head(SlotSpec(2, CLEAN, TAIL), SlotSpec(2, CLEAN, TAIL))
    add.add("slots-of-one-sequence", _file(equal, *BLOCKS, rem=7), "damaged", fault="equal sequences", by="slot")
    old = head(SlotSpec(3, DIRTY, 5, 2), SlotSpec(2, CLEAN, 2 * PLAIN))
    add.add("dirty-after-clean", _file(old, *BLOCKS), TAIL)


def file_vectors(blob: Blob) -> list[Row]:
    """All of layer `file`."""
    add = FileVectors(blob)
    for part in (_sizes, _sparse, _clean_against_length, _no_header, _blocks_replaced):
        part(add)
    for part in (_dirty_ends, _dirty_gaps, _dirty_lengths, _dirty_holes, _slots):
        part(add)
    return add.rows
