"""The second reader against the vectors, and the vectors against what they promise."""

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vector_set
from primitives import kdf, mac, sha256, siv_open, siv_seal, unb64, xaes_open, xaes_seal
from read_file import (
    Slot,
    cipher_size,
    content_key,
    header_key,
    plain_size,
    read_block,
    read_file,
    read_identity,
    read_slots,
)
from read_metadata import (
    KIND_FILE,
    Cursor,
    DamagedError,
    ReadError,
    Wrapped,
    Zone,
    commitment,
    read_dir,
    read_link,
    read_name,
    read_recipient,
    read_session,
    read_vault_file,
    read_xattr,
    read_zone_list,
    read_zone_record,
    unwrap_secret,
)
from reader import Node, read_vault, software_token
from vector_set import HERE, LAYERS, Vector, blob, build_vault, load, plain_tree

Values = dict[str, Any]


def _zone(vector: Vector) -> Zone:
    return Zone(vector.raw("zone_id"), vector.raw("zone_secret"))


def _primitive(vector: Vector) -> Values:
    given = vector.inputs
    key = vector.raw("key")
    if given["function"] == "kdf":
        return {"output": kdf(key, vector.raw("info"), given["length"]).hex()}
    if given["function"] == "mac":
        return {"output": mac(key, vector.raw("message")).hex()}
    plain = vector.raw("plain")
    if given["function"] == "siv":
        associated = [blob(one) for one in given["associated"]]
        sealed = siv_seal(key, associated, plain)
        assert siv_open(key, associated, sealed) == plain
        return {"output": sealed.hex()}
    nonce, aad = vector.raw("nonce"), vector.raw("associated")
    sealed = xaes_seal(key, nonce, plain, aad)
    assert xaes_open(key, nonce, sealed, aad) == plain
    return {"output": sealed.hex()}


def _keys(vector: Vector) -> Values:
    if "dek" in vector.inputs:
        dek = vector.raw("dek")
        keys = {
            "content_key": content_key(dek),
            "header_key": header_key(dek, vector.raw("zone_header_secret")),
        }
        return {name: key.hex() for name, key in {**keys, "commitment": commitment(dek)}.items()}
    zone = Zone(bytes(16), vector.raw("zone_secret"))
    labels = set(vector.expect) - {"commitment"}
    return {label: zone.key(label).hex() for label in labels} | {"commitment": commitment(zone.secret).hex()}


def _vaultfile(vector: Vector) -> Values:
    vault_id, vault_hash = read_vault_file(vector.raw("raw"))
    return {"vault_id": vault_id.hex(), "vault_hash": vault_hash.hex()}


def _wrap(vector: Vector) -> Values:
    recipient = read_recipient(Cursor(vector.raw("recipient"), "wrap"), "wrap")
    bound = (vector.raw(name) for name in ("vault_hash", "zone_id", "object_id", "commitment"))
    what = Wrapped(vector.inputs["kind"], *bound)
    return {"secret": unwrap_secret([recipient], what, software_token(vector.cmks())).hex()}


def _zone_record(vector: Vector) -> Values:
    token = software_token(vector.cmks())
    zone, place = read_zone_record(vector.inputs["target"], vector.raw("vault_hash"), token)
    values = {"zone_id": zone.zone_id, "zone_secret": zone.secret, "parent_id": place.parent_id}
    return {name: value.hex() for name, value in {**values, "root_id": place.root_id, "name": place.name}.items()}


def _zones(vector: Vector) -> Values:
    listed = read_zone_list(vector.raw("raw"), vector.raw("vault_hash"), _zone(vector))
    fields = ("zone_id", "parent_id", "root_id", "name")
    return {"zones": [{field: getattr(one, field).hex() for field in fields} for one in listed]}


def _dir(vector: Vector) -> Values:
    return {"dir_id": read_dir(vector.inputs["target"], _zone(vector)).hex()}


def _name(vector: Vector) -> Values:
    entry, sidecar = vector.inputs["entry"], vector.inputs["sidecar"]
    return {"name": read_name(entry, sidecar, _zone(vector), vector.raw("dir_id")).hex()}


def _link(vector: Vector) -> Values:
    return {"target": read_link(vector.inputs["target"], vector.inputs["parts"].__getitem__, _zone(vector)).hex()}


def _xattr(vector: Vector) -> Values:
    attribute, sealed = vector.inputs["attribute"], vector.raw("value")
    name, value = read_xattr(attribute, sealed, _zone(vector), vector.raw("object_id"))
    return {"name": name.hex(), "value": value.hex()}


def _header(vector: Vector) -> Values:
    zone, identity = _zone(vector), read_identity(vector.raw("identity"))
    if identity.zone_id != zone.zone_id:
        raise DamagedError("header", "of another zone")
    what = Wrapped(KIND_FILE, vector.raw("vault_hash"), zone.zone_id, identity.file_id, identity.commitment)
    dek = unwrap_secret(identity.recipients, what, software_token(vector.cmks()))
    return {
        "file_id": identity.file_id.hex(),
        "recipients": len(identity.recipients),
        "identity_hash": identity.hash.hex(),
        "content_key": content_key(dek).hex(),
        "header_key": header_key(dek, zone.key("header")).hex(),
    }


def _slot(vector: Vector) -> Values:
    slot = read_slots(vector.raw("slots"), vector.raw("header_key"), vector.raw("identity_hash"))
    holes = [list(one) for one in slot.holes]
    values = {"sequence": slot.sequence, "generation": slot.generation, "clean": slot.clean}
    return {**values, "size": slot.size, "holes": holes}


def _block(vector: Vector) -> Values:
    given = vector.inputs
    holes = tuple((first, count) for first, count in given["holes"])
    slot = Slot(1, given["slot_generation"], True, 0, holes)
    page = vector.raw("page")
    plain = read_block(vector.raw("content_key"), vector.raw("file_id"), given["number"], page, slot)
    return {"hole": True} if plain is None else {"hole": False, "length": len(plain), "sha256": sha256(plain).hex()}


def _size(vector: Vector) -> Values:
    if "plain" in vector.inputs:
        return {"cipher": cipher_size(vector.inputs["plain"])}
    return {"plain": plain_size(vector.inputs["cipher"])}


def _session(vector: Vector) -> Values:
    session = read_session(vector.raw("raw"), vector.raw("vault_hash"), _zone(vector))
    return {"unclosed": session.unclosed, "since": session.since}


READERS: dict[str, Callable[[Vector], Values]] = {
    "primitive": _primitive,
    "keys": _keys,
    "vaultfile": _vaultfile,
    "wrap": _wrap,
    "zone": _zone_record,
    "zones": _zones,
    "dir": _dir,
    "name": _name,
    "link": _link,
    "xattr": _xattr,
    "header": _header,
    "slot": _slot,
    "block": _block,
    "size": _size,
    "session": _session,
}


@pytest.mark.parametrize("vector", [one for layer in READERS for one in load(layer)], ids=str)
def test_layer(vector: Vector) -> None:
    """Each layer gives the value, or the error from the layer that must report it."""
    if "error" not in vector.expect:
        assert READERS[vector.layer](vector) == vector.expect
        return
    with pytest.raises(ReadError) as caught:
        READERS[vector.layer](vector)
    assert (caught.value.kind, caught.value.layer) == (vector.expect["error"], vector.reported_by)


@pytest.mark.parametrize("session", ["recovering", "otherwise"])
@pytest.mark.parametrize("vector", load("file"), ids=str)
def test_file(vector: Vector, session: str) -> None:
    """The table of section 8.4: the size that a reader arrives at, and what it can read of it."""
    expect, backing = vector.expect[session], io.BytesIO(vector.raw("cipher"))
    given = _zone(vector), vector.raw("vault_hash"), software_token(vector.cmks())
    if "error" in expect:
        with pytest.raises(ReadError) as caught:
            read_file(backing, *given, session == "recovering")
        assert (caught.value.kind, caught.value.layer) == (expect["error"], vector.reported_by)
        return
    view = read_file(backing, *given, session == "recovering")
    digest, unreadable = view.digest()
    assert {"size": view.size, "sha256": digest, "unreadable": unreadable} == expect


def _as_json(node: Node) -> Values:
    if node.kind not in ("dir", "file", "symlink", "special"):
        return {"error": node.kind}
    values: Values = {"kind": node.kind}
    if node.kind in ("file", "symlink"):
        values["size"] = node.size
    for name, value in (("sha256", node.sha256), ("target", node.target.hex())):
        values |= {name: value} if value else {}
    if node.xattrs:
        values["xattrs"] = {name.hex(): value.hex() for name, value in node.xattrs.items()}
    for name, found in (("unreadable", node.unreadable), ("damaged_xattrs", node.damaged_xattrs)):
        values |= {name: list(found)} if found else {}
    return values


@pytest.mark.parametrize("vector", load("tree"), ids=str)
def test_tree(vector: Vector, tmp_path: Path) -> None:
    """The mini vault, as it is and with one change."""
    vault, token = build_vault(vector, tmp_path / "vault"), software_token(vector.cmks())
    if "error" in vector.expect:
        with pytest.raises(ReadError) as caught:
            read_vault(vault, token)
        assert (caught.value.kind, caught.value.layer) == (vector.expect["error"], vector.reported_by)
        return
    nodes = read_vault(vault, token)
    found = {path.hex(): _as_json(node) for path, node in nodes.items()}
    wanted = plain_tree(vector)
    suspects = vector.expect.get("errors_any_of", [])
    if suspects:
        assert any(found[path] == {"error": "damaged"} for path in suspects)
    for tree in (found, wanted):
        for path in [path for path in tree if any((path + "2f").startswith(one + "2f") for one in suspects)]:
            del tree[path]
    assert found == wanted
    layers = {nodes[bytes.fromhex(path)].layer for path in [*vector.expect.get("changed", {}), *suspects]} - {""}
    assert layers <= {vector.reported_by}


def test_hole_ranges() -> None:
    """What a writer lists covers every hole, and no fewer ranges than it may."""
    for vector in load("holes"):
        ranges, listed = vector.inputs["ranges"], vector.expect["ranges"]
        assert len(listed) == min(len(ranges), vector.inputs["limit"])
        for first, count in ranges:
            assert any(at <= first and first + count <= at + length for at, length in listed)
        blocks = sum(count for _, count in listed) - sum(count for _, count in ranges)
        gaps = sorted(later[0] - sum(one) for one, later in itertools.pairwise(ranges))
        assert blocks == sum(gaps[: len(ranges) - len(listed)])


def test_no_set_is_empty() -> None:
    """Every layer has values and faults where it can have them, and each file is a known layer."""
    assert {path.stem for path in HERE.glob("*.json")} == set(LAYERS)
    without_faults = {"primitive", "keys", "size", "holes"}
    for layer in LAYERS:
        vectors = load(layer)
        assert any(vector.fault is None for vector in vectors)
        assert any(vector.fault for vector in vectors) or layer in without_faults


def test_an_empty_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that lost its vectors must not pass for one that holds."""
    (tmp_path / "slot.json").write_text('{"layer": "slot", "common": {}, "vectors": []}')
    monkeypatch.setattr(vector_set, "HERE", tmp_path)
    with pytest.raises(ValueError, match="no vectors"):
        load("slot")


def test_vectors_are_what_the_program_makes(tmp_path: Path) -> None:
    """Made again, every file is the same to the byte."""
    subprocess.run([sys.executable, str(HERE / "make_vectors.py"), str(tmp_path)], check=True)
    made = _contents(tmp_path)
    assert made
    committed = {path: what for path, what in _contents(HERE).items() if path in made or _is_made(path)}
    assert committed == made


def _is_made(path: str) -> bool:
    return path.startswith(("files/", "mini_vault/")) or path.endswith(".json")


def _contents(root: Path) -> dict[str, bytes | str]:
    """Relative path -> bytes of a file, or the target of a symlink."""
    contents: dict[str, bytes | str] = {}
    for directory, directories, files in os.walk(root):  # rglob would stat what a sidecar points to
        for path in (Path(directory, name) for name in (*directories, *files)):
            if path.is_symlink():
                contents[str(path.relative_to(root))] = str(path.readlink())
            elif path.is_file():
                contents[str(path.relative_to(root))] = path.read_bytes()
    return contents


def test_nothing_of_cmkfs_is_imported() -> None:
    """Neither the reader nor the program that makes the vectors shares code with cmkfs."""
    program = (
        "import sys, reader, make_vectors, vector_set; "
        "print([name for name in sys.modules if name.split('.')[0] == 'cmkfs'])"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=HERE, check=True, capture_output=True, text=True)
    assert answer.stdout == "[]\n"


def test_base64_is_canonical() -> None:
    """One spelling for each name."""
    for text in ("QQ==", "QR", "Q", "+/+/", "QQ\n", "\udcff"):
        with pytest.raises(ValueError, match=r"."):
            unb64(text)
