"""cmkfs's own code over the vectors: it gives what the second reader gives, and refuses what that refuses.

Layers go through the functions that a mount uses; files and trees through a mount without a kernel.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from contract.fake_token import FakeProvider, FakeToken, _FakeCmk
from contract.token_thread import ThreadTransport, TokenWorker
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from model.forger import LISTING, Error, Seen, look
from model.harness import ROOT, Harness, Program
from vector_set import MINI_VAULT, Vector, blob, build_vault, load, plain_tree

from cmkfs.crypto.content import ZERO_PAGE, ContentCipher
from cmkfs.crypto.dek import FileKey
from cmkfs.crypto.kdf import commitment, kdf, mac
from cmkfs.crypto.xaes import PREFIX_SIZE, Xaes
from cmkfs.crypto.zonekeys import ZoneKeys
from cmkfs.errors import CmkfsError, CmkNotFound, Damaged, KeyUnavailable, NotAVault, UnknownFormat
from cmkfs.format import b64
from cmkfs.format.header import Identity, State
from cmkfs.format.holes import Holes
from cmkfs.format.layout import BLOCK, cipher_size, plain_size_of
from cmkfs.format.recipient import CmkId, CmkVersion, Recipient, Scheme, WrapContext, WrapKind
from cmkfs.format.vault import SessionState, VaultFile, ZoneRecord
from cmkfs.fs.backing import Backing
from cmkfs.fs.directory import Directory, plain_name
from cmkfs.fs.openfile import OpenFile
from cmkfs.fs.symlinks import Symlinks
from cmkfs.fs.vaultdir import VaultDir
from cmkfs.keys.keyring import Keyring, zone_secret
from cmkfs.keys.policies import Policies
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.zone import Zone

Values = dict[str, Any]


def word(error: Exception) -> str:
    """What the vectors call an error."""
    if isinstance(error, UnknownFormat):
        return "unknown-format"
    if isinstance(error, KeyUnavailable | CmkNotFound):
        return "no-key"
    assert isinstance(error, Damaged | NotAVault), error
    return "damaged"


def token_of(vector: Vector) -> FakeToken:
    """A token that has the vector's CMKs."""
    token = FakeToken()
    for (cmk_id, version), key in vector.cmks().items():
        cmk = token.cmks.setdefault(CmkId(cmk_id), _FakeCmk(cmk_id.hex(), CmkId(cmk_id), "aes-256"))
        cmk.versions[version] = AESGCM(key)
    return token


def keys_of(vector: Vector) -> ZoneKeys:
    """The keys of the vector's zone."""
    secret = vector.raw("zone_secret")
    return ZoneKeys(vector.raw("zone_id"), secret, commitment(secret))


def zone_of(vector: Vector, cmk_id: bytes = bytes(16)) -> Zone:
    """The vector's zone, serving."""
    recipient = Recipient(CmkVersion(CmkId(cmk_id), 1, Scheme.GCM), b"")
    zone_id, secret = vector.raw("zone_id"), vector.raw("zone_secret")
    zone = Zone(zone_id, ZoneRecord(zone_id, commitment(secret), recipient, b""), "data")
    zone.begin_serving(keys_of(vector))
    return zone


def vault_of(vector: Vector) -> VaultFile:
    """As much of a vault file as the layers need: its hash."""
    return cast(VaultFile, SimpleNamespace(vault_hash=vector.raw("vault_hash")))


# -- layers ----------------------------------------------------------------------------------------


def _primitive(vector: Vector) -> Values:
    key, function = vector.raw("key"), vector.inputs["function"]
    if function == "kdf":
        return {"output": kdf(key, vector.raw("info"), vector.inputs["length"]).hex()}
    if function == "mac":
        return {"output": mac(key, vector.raw("message")).hex()}
    plain = vector.raw("plain")
    if function == "siv":
        return {"output": AESSIV(key).encrypt(plain, [blob(one) for one in vector.inputs["associated"]]).hex()}
    nonce = vector.raw("nonce")
    sealed = Xaes(key).derive(nonce[:PREFIX_SIZE]).encrypt(nonce[PREFIX_SIZE:], plain, vector.raw("associated"))
    return {"output": sealed.hex()}


def _keys(vector: Vector) -> Values:
    if "dek" in vector.inputs:
        dek, secret = vector.raw("dek"), vector.raw("zone_header_secret")
        key = FileKey(dek, Identity(bytes(16), bytes(16), commitment(dek), ()), secret)
        content = vector.expect["content_key"]
        page = key.content.seal(0, b"x", 0)
        assert ContentCipher(bytes.fromhex(content), bytes(16)).open(0, page, 0).length == 1
        return {"content_key": content, "header_key": key._header_key.hex(), "commitment": commitment(dek).hex()}
    secret = vector.raw("zone_secret")
    zone = ZoneKeys(bytes(16), secret, commitment(secret))
    values = {"header": zone.header_secret.hex(), "session": zone.session._key.hex()}
    for label in set(vector.expect) - {"header", "session", "commitment"}:
        expected = bytes.fromhex(vector.expect[label])
        cipher: AESSIV = getattr(zone, f"_{label}")
        assert cipher.encrypt(b"x", [b"a"]) == AESSIV(expected).encrypt(b"x", [b"a"])
        values[label] = expected.hex()
    return {**values, "commitment": commitment(secret).hex()}


def _vaultfile(vector: Vector) -> Values:
    vault = VaultFile.from_bytes(vector.raw("raw"))
    return {"vault_id": vault.vault_id, "vault_hash": vault.vault_hash.hex()}


def _wrap(vector: Vector) -> Values:
    recipient, _ = Recipient.read(vector.raw("recipient"), 0)
    if not recipient.version.usable:
        raise CmkNotFound("a scheme that this version does not know is passed over")
    bound = [vector.raw(name) for name in ("vault_hash", "zone_id", "object_id", "commitment")]
    context = WrapContext(WrapKind(vector.inputs["kind"]), *bound).to_bytes(recipient.version)
    secret = token_of(vector).elsewhere.unwrap(recipient.version, recipient.wrapped, context=context)
    if commitment(secret) != bound[3]:
        raise Damaged("not the secret that was committed to")
    return {"secret": secret.hex()}


def _zone(vector: Vector) -> Values:
    record = ZoneRecord.from_bytes(b64.decode(vector.inputs["target"].encode()))
    zone = Zone(record.zone_id, record, "data")
    recipient, context = zone_secret(vault_of(vector), zone)
    secret = token_of(vector).elsewhere.unwrap(recipient.version, recipient.wrapped, context=context)
    root = ZoneKeys(zone.zone_id, secret, record.commitment).open_zone_root(vector.raw("vault_hash"), record)
    return {
        "zone_id": zone.zone_id.hex(),
        "zone_secret": secret.hex(),
        "parent_id": root.parent_dir_id.hex(),
        "root_id": root.dir_id.hex(),
        "name": root.name.hex(),
    }


def _zones(vector: Vector) -> Values:
    roots = keys_of(vector).open_zone_list(vector.raw("vault_hash"), vector.raw("raw"))
    return {
        "zones": [
            {
                "zone_id": root.zone_id.hex(),
                "parent_id": root.parent_dir_id.hex(),
                "root_id": root.dir_id.hex(),
                "name": root.name.hex(),
            }
            for root in roots
        ]
    }


def _dir(vector: Vector) -> Values:
    data = b64.decode(vector.inputs["target"].encode(errors="surrogateescape"))
    if data[:16] != vector.raw("zone_id"):
        raise Damaged("of another zone: fs.directory looks the zone up by this id")
    return {"dir_id": keys_of(vector).open_dir_id(data).hex()}


def _name(vector: Vector, directory: Path) -> Values:
    entry = os.fsencode(vector.inputs["entry"])
    if vector.inputs["sidecar"] is not None:
        (directory / ("cmkfs." + vector.inputs["entry"])).symlink_to(vector.inputs["sidecar"])
    fd = os.open(directory, os.O_RDONLY)
    try:
        return {"name": plain_name(Directory(vector.raw("dir_id"), zone_of(vector)), fd, entry).hex()}
    except FileNotFoundError as error:
        raise Damaged("no sidecar: the entry is not shown") from error
    finally:
        os.close(fd)


def _link(vector: Vector, directory: Path) -> Values:
    (directory / "cmkfs.links").mkdir()
    for name, part in vector.inputs["parts"].items():
        (directory / "cmkfs.links" / name).symlink_to(part)
    fd = os.open(directory, os.O_RDONLY)
    try:
        return {"target": Symlinks(fd).open(zone_of(vector), os.fsencode(vector.inputs["target"])).hex()}
    finally:
        os.close(fd)


def _xattr(vector: Vector) -> Values:
    handle = vector.inputs["attribute"].removeprefix("user.cmkfs.").encode()
    name, value = keys_of(vector).open_xattr(vector.raw("object_id"), handle, vector.raw("value"))
    return {"name": name.hex(), "value": value.hex()}


def _header(vector: Vector) -> Values:
    identity = Identity.from_bytes(vector.raw("identity"))
    token, worker = token_of(vector), TokenWorker()
    # A file is read with the CMK of its zone: the first that the token has of those it is wrapped for.
    known = [one.version.cmk_id for one in identity.recipients if one.version.cmk_id in token.cmks]
    zone = zone_of(vector, known[0] if known else bytes(16))
    keyring = Keyring(vault_of(vector), TokenClient(ThreadTransport(worker, token.elsewhere), 5.0), Policies(0))
    keyring.add_zone(zone)
    try:
        key = trio.run(keyring.lease, zone, identity).key
    finally:
        worker.close(wait=5.0)
    page = key.content.seal(0, b"x", 0)
    assert ContentCipher(bytes.fromhex(vector.expect["content_key"]), identity.file_id).open(0, page, 0).length == 1
    return {
        "file_id": identity.file_id.hex(),
        "recipients": len(identity.recipients),
        "identity_hash": identity.hash().hex(),
        "content_key": vector.expect["content_key"],
        "header_key": key._header_key.hex(),
    }


def _slot(vector: Vector) -> Values:
    key = object.__new__(FileKey)
    key._header_key, key.identity_hash = vector.raw("header_key"), vector.raw("identity_hash")
    slot = key.read_slots(bytes(3072) + vector.raw("slots")).slot
    return {
        "sequence": slot.sequence,
        "generation": slot.generation,
        "clean": slot.state is State.CLEAN,
        "size": slot.size,
        "holes": [[first, stop - first] for first, stop in slot.holes.ranges],
    }


def _block(vector: Vector) -> Values:
    number, page = vector.inputs["number"], vector.raw("page")
    holes = Holes(tuple((first, first + count) for first, count in vector.inputs["holes"]))
    cipher = ContentCipher(vector.raw("content_key"), vector.raw("file_id"))
    newest, plain = vector.inputs["slot_generation"] + 1, bytearray(BLOCK)
    # As long as the block says itself: whether that is long enough is the file's affair.
    length = int.from_bytes(page[24:26]) if page != ZERO_PAGE else BLOCK
    file = SimpleNamespace(size=number * BLOCK + length, holes=holes)
    OpenFile._open_page(cast(OpenFile, file), cipher, number, memoryview(page), newest, memoryview(plain))
    if page == ZERO_PAGE:
        return {"hole": True}
    return {"hole": False, "length": length, "sha256": hashlib.sha256(plain[:length]).hexdigest()}


def _size(vector: Vector) -> Values:
    if "plain" in vector.inputs:
        return {"cipher": cipher_size(vector.inputs["plain"])}
    return {"plain": plain_size_of(vector.inputs["cipher"])}


def _holes(vector: Vector) -> Values:
    ranges = tuple((first, first + count) for first, count in vector.inputs["ranges"])
    listed = Holes(ranges).at_most(vector.inputs["limit"])
    return {"ranges": [[first, stop - first] for first, stop in listed.ranges]}


def _session(vector: Vector, directory: Path) -> Values:
    (directory / "cmkfs.session").write_bytes(vector.raw("raw"))
    backing = Backing(directory, read_only=True)
    try:
        session = VaultDir(backing, vault_of(vector), keys_of(vector).session).session()
    finally:
        backing.close()
    return {"unclosed": session.state is SessionState.OPEN, "since": session.unsettled_since}


PURE: dict[str, Callable[[Vector], Values]] = {
    "primitive": _primitive,
    "keys": _keys,
    "vaultfile": _vaultfile,
    "wrap": _wrap,
    "zone": _zone,
    "zones": _zones,
    "dir": _dir,
    "xattr": _xattr,
    "header": _header,
    "slot": _slot,
    "block": _block,
    "size": _size,
    "holes": _holes,
}
ON_DISK: dict[str, Callable[[Vector, Path], Values]] = {"name": _name, "link": _link, "session": _session}


@pytest.mark.parametrize("vector", [one for layer in [*PURE, *ON_DISK] for one in load(layer)], ids=str)
def test_layer(vector: Vector, tmp_path: Path) -> None:
    def read() -> Values:
        pure = PURE.get(vector.layer)
        return pure(vector) if pure is not None else ON_DISK[vector.layer](vector, tmp_path)

    if "error" not in vector.expect:
        assert read() == vector.expect
        return
    with pytest.raises(CmkfsError) as caught:
        read()
    assert word(caught.value) in _words(vector.expect["error"], caught.value)


def _words(expected: str, error: Exception) -> tuple[str, ...]:
    """What may be said. A reader that has only a token finds no key; cmkfs knows which CMK must have wrapped it."""
    known = ("no CMK of its zone", "a version that the CMK does not have")
    return (expected, "damaged") if any(words in str(error) for words in known) else (expected,)


# -- files and trees -------------------------------------------------------------------------------


def _knows_nothing(_ino: int, *, length: int) -> None:
    """A kernel that has cached no page of any inode."""


class MountedVector(Harness):
    """A vault that somebody else made, with a token that has the vector's CMKs."""

    def __init__(self, vault: Path, vector: Vector) -> None:
        self.vault = vault
        self.token = token_of(vector)
        self._backing_class = Backing
        # The CMK of the root zone; the harness needs it to have a policy.
        record = ZoneRecord.from_bytes(b64.decode(os.fsencode((MINI_VAULT / "vault" / "cmkfs.zone").readlink())))
        self.cmk = cast(FakeProvider, self.token.elsewhere).describe(record.recipient.version.cmk_id)
        self.kernel = cast(Any, SimpleNamespace(negotiated=None, invalidate_inode=_knows_nothing))


UNCLOSED = next(vector for vector in load("tree") if vector.name == "unclosed")
AS_IT_IS = next(vector for vector in load("tree") if vector.name == "as-it-is")
EMPTY = b"empty"
"""The file of the mini vault in whose place the files of the vectors are put."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a vault is built."""
    yield tmp_path / "vault"
    shutil.rmtree(tmp_path / "vault", ignore_errors=True)


@pytest.mark.parametrize("session", ["recovering", "otherwise"])
@pytest.mark.parametrize("vector", load("file"), ids=str)
async def test_file(vector: Vector, session: str, place: Path) -> None:
    """The table of section 8.4, by opening the file and reading it block by block."""
    expect = vector.expect[session]
    build_vault(UNCLOSED if session == "recovering" else AS_IT_IS, place)
    harness = MountedVector(place, vector)
    zone = keys_of(AS_IT_IS_ZONE)
    root = zone.open_dir_id(b64.decode(os.fsencode((place / "cmkfs.dir").readlink())))
    (place / os.fsdecode(zone.seal_name(root, EMPTY))).write_bytes(vector.raw("cipher"))
    await harness.mount()
    try:
        assert (harness.mounted.recovered is not None) == (session == "recovering")
        if "error" in expect:
            with pytest.raises(OSError) as caught:
                await _open(harness.program)
            assert isinstance(caught.value.__cause__, CmkfsError)
            assert word(caught.value.__cause__) in _words(expect["error"], caught.value.__cause__)
            return
        fh = await _open(harness.program)
        size = harness.program.file(fh).size
        assert (await harness.program.lookup(ROOT, EMPTY)).st_size == size
        blocks = [await _block_or_none(harness.program, fh, at) for at in range(0, size, BLOCK)]
        readable = b"".join(block for block in blocks if block is not None)
        unreadable = [number for number, block in enumerate(blocks) if block is None]
        found = {"size": size, "sha256": hashlib.sha256(readable).hexdigest(), "unreadable": unreadable}
        assert found == expect
    finally:
        harness.kill()


AS_IT_IS_ZONE = load("name")[0]
"""A vector that has the secret of the mini vault's root zone."""


async def _open(program: Program) -> int:
    entry = await program.lookup(ROOT, EMPTY)
    try:
        return await program.open(entry.st_ino, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    # As the kernel does it: the size that was told is not the one that reads honour.
    return await program.open((await program.lookup(ROOT, EMPTY)).st_ino, os.O_RDONLY)


async def _block_or_none(program: Program, fh: int, at: int) -> bytes | None:
    try:
        return await program.read(fh, at, BLOCK)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


@pytest.mark.parametrize("vector", load("tree"), ids=str)
async def test_tree(vector: Vector, place: Path) -> None:
    """The mini vault, as it is and with one change, in all its zones."""
    build_vault(vector, place)
    harness = MountedVector(place, vector)
    if "error" in vector.expect:
        with pytest.raises(CmkfsError) as caught:
            await harness.mount()
        assert word(caught.value) == vector.expect["error"]
        return
    await harness.mount()
    try:
        seen = await look(harness.program, attributes=_attributes(vector))
    finally:
        harness.kill()
    found = {b"/".join(names).hex(): _as_json(node) for names, node in seen.items()}
    wanted = {path: _comparable(node) for path, node in plain_tree(vector).items()}
    suspects = vector.expect.get("errors_any_of", [])
    if suspects:
        assert any(found[path] == {"error": "damaged"} for path in suspects)
    for tree in (found, wanted):
        for path in list(tree):
            if any((path + "2f").startswith(one + "2f") for one in suspects):
                del tree[path]
    assert found == wanted


def _attributes(vector: Vector) -> tuple[bytes, ...]:
    """The plain names of all attributes that anything has."""
    nodes = plain_tree(AS_IT_IS).values()
    return tuple({bytes.fromhex(name) for node in nodes for name in node.get("xattrs", {})})


def _as_json(node: Seen | Error) -> Values:
    if isinstance(node, Error):
        return {"error": "damaged"}
    values: Values = {"kind": {"directory": "dir"}.get(node.kind, node.kind)}
    if node.kind == "file":
        readable = b"".join(block for block in node.blocks if isinstance(block, bytes))
        values |= {"size": node.size, "sha256": hashlib.sha256(readable).hexdigest()}
        unreadable = [number for number, block in enumerate(node.blocks) if isinstance(block, Error)]
        values |= {"unreadable": unreadable} if unreadable else {}
    if node.kind == "symlink":
        assert isinstance(node.target, bytes)
        values |= {"size": len(node.target), "target": node.target.hex()}
    if LISTING in node.xattrs:
        values["damaged"] = True
    if xattrs := {name.hex(): value.hex() for name, value in node.xattrs.items() if isinstance(value, bytes)}:
        values["xattrs"] = xattrs
    return values


def _comparable(node: Values) -> Values:
    """Which attribute is damaged has no plain name: that one is, shows when they are listed."""
    values = {name: value for name, value in node.items() if name != "damaged_xattrs"}
    return {**values, "damaged": True} if "damaged_xattrs" in node else values
