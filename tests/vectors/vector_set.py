"""Loads the test vectors. Imports neither cmkfs nor the reader, so that both can be tested with it.

README.md describes the files. `load(layer)` gives the vectors of one layer; a set that is missing,
empty, or not well formed raises ValueError.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MINI_VAULT = HERE / "mini_vault"
LAYERS = (
    "primitive",
    "keys",
    "vaultfile",
    "wrap",
    "zone",
    "zones",
    "dir",
    "name",
    "link",
    "xattr",
    "header",
    "slot",
    "block",
    "size",
    "holes",
    "session",
    "file",
    "tree",
)
ERRORS = ("damaged", "unknown-format", "no-key")


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector. `expect` has either "error" (a word of ERRORS) or the values; a fault names its layer."""

    name: str
    layer: str
    inputs: dict[str, Any]
    expect: dict[str, Any]
    fault: str | None
    reported_by: str | None

    def __str__(self) -> str:
        return f"{self.layer}/{self.name}"

    def raw(self, key: str) -> bytes:
        """The bytes of an input."""
        return blob(self.inputs[key])

    def cmks(self) -> dict[tuple[bytes, int], bytes]:
        """What the token has: (CMK id, version) -> AES-256 key."""
        return {(blob(one["id"]), one["version"]): blob(one["key"]) for one in self.inputs["cmks"]}


def blob(value: str | dict[str, Any]) -> bytes:
    """Bytes from hex, or from a length and the parts that are not zero (hex, or copied from `files/`)."""
    if isinstance(value, str):
        return bytes.fromhex(value)
    whole = bytearray(value["length"])
    for part in value["parts"]:
        if "hex" in part:
            piece = bytes.fromhex(part["hex"])
        else:
            piece = (HERE / part["file"]).read_bytes()[part["from"] : part["from"] + part["count"]]
        whole[part["at"] : part["at"] + len(piece)] = piece
    if len(whole) != value["length"]:
        raise ValueError("a part reaches beyond the length")
    return bytes(whole)


def load(layer: str) -> list[Vector]:
    """All vectors of a layer; ValueError when there are none, or one is not well formed."""
    document = json.loads((HERE / f"{layer}.json").read_text())
    vectors = [
        Vector(
            one["name"],
            document["layer"],
            {**document["common"], **one["inputs"]},
            one["expect"],
            one.get("fault"),
            one.get("reported_by"),
        )
        for one in document["vectors"]
    ]
    if not vectors or document["layer"] != layer:
        raise ValueError(f"{layer}.json has no vectors of this layer")
    if len({vector.name for vector in vectors}) != len(vectors):
        raise ValueError(f"{layer}.json has one name twice")
    for vector in vectors:
        if not vector.expect or (vector.fault is None) != (vector.reported_by is None):
            raise ValueError(f"{vector} expects nothing, or its fault names no layer")
        if vector.expect.get("error", ERRORS[0]) not in ERRORS:
            raise ValueError(f"{vector} expects an unknown error")
    return vectors


def everything() -> Iterator[Vector]:
    """The vectors of all layers."""
    for layer in LAYERS:
        yield from load(layer)


def build_vault(vector: Vector, directory: Path) -> Path:
    """The vault of a `tree` vector, made as `directory`: the mini vault with the vector's changes."""
    shutil.copytree(MINI_VAULT / "vault", directory, symlinks=True)
    for path, attributes in json.loads((MINI_VAULT / "xattrs.json").read_text()).items():
        for name, value in attributes.items():
            os.setxattr(directory / path, name, bytes.fromhex(value))
    for change in vector.inputs["changes"]:
        _change(directory, **change)
    return directory


def _change(root: Path, do: str, path: str, **how: Any) -> None:
    """One change to a vault; the words are those of README.md."""
    where = root / path
    if do == "write":
        where.write_bytes(blob(how["data"]))
    elif do == "symlink":
        where.unlink(missing_ok=True)
        where.symlink_to(how["target"])
    elif do == "move":
        where.rename(root / how["to"])
    elif do == "exchange":
        other, aside = root / how["to"], where.with_name("aside")
        where.rename(aside)
        other.rename(where)
        aside.rename(other)
    elif do == "copy" and where.is_dir() and not where.is_symlink():
        shutil.copytree(where, root / how["to"], symlinks=True)
    elif do == "copy":
        shutil.copy2(where, root / how["to"], follow_symlinks=False)
    elif do == "link":
        os.link(where, root / how["to"], follow_symlinks=False)
    elif do == "fifo":
        os.mkfifo(where)
    elif do == "remove":
        where.unlink()
    elif do == "setxattr":
        os.setxattr(where, how["attribute"], blob(how["value"]))
    else:
        raise ValueError(f"unknown change {do}")


def plain_tree(vector: Vector) -> dict[str, Any]:
    """The tree that a `tree` vector expects: plain path in hex -> node, as in `mini_vault/plain.json`."""
    tree: dict[str, Any] = json.loads((MINI_VAULT / "plain.json").read_text())
    for gone in vector.expect.get("gone", []):
        for path in [path for path in tree if path == gone or path.startswith(gone + "2f")]:
            del tree[path]
    return {**tree, **vector.expect.get("changed", {})}
