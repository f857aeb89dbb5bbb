"""One vector as the JSON has it."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Blob = Callable[[bytes], Any]
"""Writes bytes that are too long for hex, see README.md."""


def row(name: str, inputs: Row, expect: Row | str, fault: str | None = None, by: str = "") -> Row:
    """A vector; an `expect` that is a word is an error. `by` is the layer that must report `fault`."""
    made: Row = {
        "name": name,
        "inputs": inputs,
        "expect": {"error": expect} if isinstance(expect, str) else expect,
    }
    return made if fault is None else {**made, "fault": fault, "reported_by": by}


def flip(data: bytes, at: int, bit: int = 1) -> bytes:
    """`data` with one bit of byte `at` changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
