"""Writes all test vectors beside this file: `python make_vectors.py [DIRECTORY]`.

Deterministic: every run gives the same bytes (a test compares). README.md describes what it writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from make_blocks import block_vectors
from make_files import cipher_files, file_vectors
from make_headers import header_vectors, hole_vectors, size_vectors, slot_vectors, token_inputs
from make_metadata import (
    VAULT,
    ZONE,
    check_published,
    key_vectors,
    primitive_vectors,
    session_vectors,
    vaultfile_vectors,
    wrap_vectors,
    zone_vectors,
    zones_vectors,
)
from make_names import dir_vectors, link_vectors, name_vectors, xattr_vectors
from make_trees import tree_vectors
from make_vault import mini_vault, write_mini_vault
from rows import Row
from sealing import PAGE

SHORT = 200  # bytes that are written as plain hex
NEAR = 8  # bytes between two differences that are written as one
FAR = 4000  # differing bits from which a page is no variant of another


class Blobs:
    """Writes long bytes as copies of pages of `files/` and what differs: a fault is seen at a glance."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._pages: dict[bytes, tuple[str, int]] = {}
        for name, data in files.items():
            for at in range(0, len(data) - PAGE + 1, PAGE):
                page = data[at : at + PAGE]
                if any(page):
                    self._pages.setdefault(page, (f"files/{name}", at))
        self._numbers = [(int.from_bytes(page, "big"), page) for page in self._pages]

    def __call__(self, data: bytes) -> Any:
        """The value that `vector_set.blob` turns back into `data`."""
        if len(data) <= SHORT:
            return data.hex()
        parts: list[Row] = []
        for at in range(0, len(data), PAGE):
            parts += self._page(at, data[at : at + PAGE])
        return {"length": len(data), "parts": parts}

    def _page(self, at: int, page: bytes) -> list[Row]:
        """The parts of one page, or of the piece of a page at the end."""
        if not any(page):
            return []
        value = int.from_bytes(page.ljust(PAGE, b"\0"), "big")
        distance, near = min(((value ^ number).bit_count(), page) for number, page in self._numbers)
        if distance > FAR:
            return [{"at": at + start, "hex": run.hex()} for start, run in _runs(page, bytes(len(page)))]
        name, start = self._pages[near]
        copy = {"at": at, "file": name, "from": start, "count": len(page)}
        return [
            copy,
            *({"at": at + start, "hex": run.hex()} for start, run in _runs(page, near[: len(page)])),
        ]


def _runs(data: bytes, base: bytes) -> list[tuple[int, bytes]]:
    """Where `data` differs from `base`, runs that lie close together as one."""
    differs = [at for at, (one, other) in enumerate(zip(data, base, strict=True)) if one != other]
    runs: list[tuple[int, int]] = []
    for at in differs:
        if runs and at - runs[-1][1] <= NEAR:
            runs[-1] = (runs[-1][0], at)
        else:
            runs.append((at, at))
    return [(start, data[start : end + 1]) for start, end in runs]


def all_layers(blob: Blobs) -> dict[str, tuple[Row, list[Row]]]:
    """Layer -> (common inputs, vectors)."""
    return {
        "primitive": ({}, primitive_vectors()),
        "keys": ({}, key_vectors()),
        "vaultfile": ({}, vaultfile_vectors()),
        "wrap": wrap_vectors(),
        "zone": zone_vectors(),
        "zones": zones_vectors(),
        "dir": dir_vectors(),
        "name": name_vectors(),
        "link": link_vectors(),
        "xattr": xattr_vectors(),
        "header": header_vectors(blob),
        "slot": slot_vectors(blob),
        "block": block_vectors(blob),
        "size": ({}, size_vectors()),
        "holes": ({"limit": 26}, hole_vectors()),
        "session": session_vectors(),
        "file": ({**ZONE, **VAULT, **token_inputs()}, file_vectors(blob)),
    }


def write_vectors(directory: Path) -> None:
    """Writes everything into `directory`."""
    check_published()
    files = cipher_files()
    (directory / "files").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / "files" / name).write_bytes(data)
    blob, made = Blobs(files), mini_vault()
    write_mini_vault(made, directory / "mini_vault")
    layers = all_layers(blob)
    layers["tree"] = (token_inputs(), tree_vectors(made, blob))
    for layer, (common, vectors) in layers.items():
        head = json.dumps({"layer": layer, "common": common})[:-1]
        lines = ",\n".join(json.dumps(vector) for vector in vectors)
        (directory / f"{layer}.json").write_text(f'{head}, "vectors": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    write_vectors(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
