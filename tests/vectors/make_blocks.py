"""The vectors of the layer `block`."""

from collections.abc import Iterator
from typing import Any

from make_files import BLOCKS, CONTENT, FILE, ROOT_ZONE
from primitives import sha256
from rows import Blob, Row, flip, row
from sealing import PAGE, PLAIN, FileSpec


def _block_rows() -> Iterator[tuple[str, int, bytes, bytes | str | None, str | None]]:
    """(name, block number, page, plain bytes or None for a hole or the error, fault)."""
    full = CONTENT[:PLAIN]
    yield "full", 0, BLOCKS[0], full, None
    yield "short", 3, BLOCKS[3], CONTENT[3 * PLAIN :], None
    yield "one-byte", 9, FILE.block(9, b"a"), b"a", None
    yield "zeros-sealed", 9, FILE.block(9, bytes(PLAIN)), bytes(PLAIN), None
    yield "last-number", (1 << 40) - 1, FILE.block((1 << 40) - 1, b"far"), b"far", None
    yield "same-generation", 9, FILE.block(9, b"a", 3), b"a", None
    yield "one-generation-ahead", 9, FILE.block(9, b"a", 4), b"a", None
    yield "zeros-in-a-hole", 5, bytes(PAGE), None, None
    yield "not-zeros-in-a-hole", 5, FILE.block(5, full), full, None
    for field, at in (("nonce-first-half", 0), ("nonce-second-half", 23), ("length", 25), ("flags", 27)):
        yield f"flip-{field}", 0, flip(BLOCKS[0], at), "damaged", f"a bit of the {field} flipped"
    for field, at in (("generation", 31), ("ciphertext", 32), ("ciphertext-end", 4079), ("tag", 4095)):
        yield f"flip-{field}", 0, flip(BLOCKS[0], at, 128), "damaged", f"a bit of the {field} flipped"
    yield "wrong-number", 1, BLOCKS[0], "damaged", "block in the place of another"
    other = FileSpec("twin", ROOT_ZONE).block(0, full)
    yield "of-another-file", 0, other, "damaged", "block of another file"
    yield "two-generations-ahead", 9, FILE.block(9, b"a", 5), "damaged", "two generations ahead"
    yield "zeros", 0, bytes(PAGE), "damaged", "zeros outside of a hole"
    yield "zeros-before-the-hole", 4, bytes(PAGE), "damaged", "zeros outside of a hole"
    yield "zeros-after-the-hole", 7, bytes(PAGE), "damaged", "zeros outside of a hole"
    yield "one-bit-in-a-hole", 5, flip(bytes(PAGE), 77), "damaged", "a bit set in a hole"
    yield "length-0", 0, FILE.block(0, full, length=0), "damaged", "length out of range"
    yield "length-4049", 0, FILE.block(0, full, length=PLAIN + 1), "damaged", "length out of range"
    yield "flags-1", 0, FILE.block(0, full, flags=1), "damaged", "flags are not 0"
    padding = bytes(PLAIN - 8) + b"\1"
    yield "padding-not-zero", 0, FILE.block(0, full[:7], padding=padding), "damaged", "padding is not NUL"
    yield "cut-zeros-in-a-hole", 5, bytes(PAGE - 1), "damaged", "less than a page"
    yield "nothing-in-a-hole", 6, b"", "damaged", "beyond the end of the backing"
    yield "cut", 0, BLOCKS[0][:4095], "damaged", "less than a page"


def block_vectors(blob: Blob) -> tuple[dict[str, Any], list[Row]]:
    """(common inputs, vectors) of layer `block`."""
    rows = []
    for name, number, page, outcome, fault in _block_rows():
        expect: dict[str, Any] = {"error": outcome} if isinstance(outcome, str) else {"hole": outcome is None}
        if isinstance(outcome, bytes):
            expect |= {"length": len(outcome), "sha256": sha256(outcome).hex()}
        rows.append(row(name, {"number": number, "page": blob(page)}, expect, fault, "block"))
    common = {
        "content_key": FILE.content_key.hex(),
        "file_id": FILE.file_id.hex(),
        "slot_generation": 3,
        "holes": [[5, 2]],
    }
    return common, rows
