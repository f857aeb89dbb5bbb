"""The vectors of the layer `tree`: the mini vault with one change."""

from typing import Any

from make_files import ROOT_ZONE
from make_vault import EMPTY, NO_PARENT, ODD, SECRET_ZONE, Directory, Made, session
from primitives import b64
from rows import Blob, Row, flip, row
from sealing import FileSpec, rnd, vault_file


class TreeVectors:
    """Collects the vectors of layer `tree`."""

    def __init__(self, made: Made, blob: Blob) -> None:
        self.made, self._blob = made, blob
        self.rows: list[Row] = []

    def add(self, name: str, changes: list[Row], fault: str | None = None, by: str = "", **expect: Any) -> None:
        """A vector; `expect` has changed, gone, error or errors_any_of."""
        self.rows.append(row(name, {"changes": changes}, expect or {"changed": {}}, fault, by))

    def write(self, path: str, data: bytes) -> Row:
        """The change that writes a file."""
        return {"do": "write", "path": path, "data": self._blob(data)}

    def damaged(self, directory: Directory, name: bytes) -> dict[str, Any]:
        """What `changed` says of an entry that is `EIO`."""
        return {directory.path(name).hex(): {"error": "damaged"}}

    def node(self, path: bytes) -> Any:
        """The node of a plain path in the mini vault."""
        return self.made.vault.plain[path.hex()]


def symlink(path: str, target: str) -> Row:
    """The change that makes or replaces a symlink."""
    return {"do": "symlink", "path": path, "target": target}


def to(do: str, path: str, other: str) -> Row:
    """A change with two paths: move, copy, exchange or link."""
    return {"do": do, "path": path, "to": other}


def _unchanged(add: TreeVectors) -> None:
    """What is no fault."""
    root, docs, more = add.made.root, add.made.docs, add.made.more
    hello = root.entry(b"hello.txt")
    add.add("as-it-is", [])
    add.add("owner-and-leftovers", [add.write("cmkfs.owner", b"host 1\n"), add.write("cmkfs.tmp.x", b"half")])
    add.add("foreign-entries", [add.write("README.txt", b"x"), add.write("no-name", b"x"), add.write("=", b"x")])
    fifo = {docs.path(b"pipe").hex(): {"kind": "special"}}
    add.add("fifo", [{"do": "fifo", "path": docs.entry(b"pipe")}], changed=fifo)
    linked = {docs.path(b"again").hex(): add.node(b"hello.txt")}
    add.add("hard-link", [to("link", hello, docs.entry(b"again"))], changed=linked)
    moved = {docs.path(b"moved").hex(): add.node(b"hello.txt")}
    add.add(
        "file-moved-within-the-zone",
        [to("move", hello, docs.entry(b"moved"))],
        changed=moved,
        gone=[b"hello.txt".hex()],
    )
    far = more.path(b"to-4095")
    moved = {docs.path(b"l").hex(): add.node(far)}
    add.add(
        "symlink-moved-within-the-zone",
        [to("move", more.entry(b"to-4095"), docs.entry(b"l"))],
        changed=moved,
        gone=[far.hex()],
    )
    add.add("unclosed", [add.write("cmkfs.session", session(1, 2))])
    lost = [add.write("cmkfs.session", session(1, 2)), add.write(hello, b"")]
    xattrs = {add.made.root.path(b"hello.txt").hex(): EMPTY}
    add.add("unclosed-and-a-file-without-header", [*lost], changed=xattrs)


def _vault_faults(add: TreeVectors) -> None:
    """What makes the whole vault unreadable."""
    objects = add.made.vault.objects
    raw = vault_file()
    edited = raw.replace(b',"format"', b', "format"')
    add.add("vault-file-edited", [add.write("cmkfs.vault", edited)], "a space added", "wrap", error="damaged")
    newer = [add.write("cmkfs.vault", vault_file(format=2))]
    add.add("vault-file-newer", newer, "format 2", "vaultfile", error="unknown-format")
    for name, layer in (
        ("vault", "vaultfile"),
        ("session", "session"),
        ("zones", "zones"),
        ("dir", "dir"),
        ("zone", "zone"),
    ):
        change = {"do": "remove", "path": f"cmkfs.{name}"}
        add.add(f"no-cmkfs-{name}", [change], f"cmkfs.{name} removed", layer, error="damaged")
    both = flip(flip(session(2, 1), 0), 512)
    add.add("session-damaged", [add.write("cmkfs.session", both)], "both slots", "session", error="damaged")
    zones = objects["cmkfs.zones"]
    assert isinstance(zones, bytes)
    add.add(
        "zones-flipped",
        [add.write("cmkfs.zones", flip(zones, 40))],
        "a bit flipped",
        "zones",
        error="damaged",
    )
    other = symlink("cmkfs.zone", str(objects[add.made.secret.cipher + "cmkfs.zone"]))
    add.add("root-with-another-record", [other], "record of another zone", "dir", error="damaged")
    record = b64(ROOT_ZONE.record(rnd("parent", 16), add.made.root.dir_id, b""))
    fault = "the record of the root names a parent"
    add.add("root-with-a-parent", [symlink("cmkfs.zone", record)], fault, "zone", error="damaged")
    record = b64(ROOT_ZONE.record(NO_PARENT, add.made.docs.dir_id, b""))
    fault = "the record of the root names another directory"
    add.add("root-of-another-id", [symlink("cmkfs.zone", record)], fault, "zone", error="damaged")


def _zone_faults(add: TreeVectors) -> None:
    made, objects, root = add.made, add.made.vault.objects, add.made.root
    secret, inner, docs = made.secret, made.inner, made.docs
    below = [path for path in made.vault.plain if bytes.fromhex(path).startswith(b"secret/")]
    hidden: Row = {"gone": below, "changed": add.damaged(root, b"secret")}
    short = [one for one in made.vault.zones if one[0] != SECRET_ZONE.zone_id]
    unlisted = [add.write("cmkfs.zones", ROOT_ZONE.zone_list(short))]
    add.add("zone-not-listed", unlisted, "a zone that the list lacks", "zones", **hidden)
    ids = [(*one[:2], rnd("id", 16), one[3]) if one[0] == SECRET_ZONE.zone_id else one for one in made.vault.zones]
    listed = [add.write("cmkfs.zones", ROOT_ZONE.zone_list(ids))]
    add.add("zone-listed-with-another-root", listed, "another directory id in the list", "zone", **hidden)
    gone = [{"do": "remove", "path": secret.cipher + "cmkfs.zone"}]
    add.add("zone-without-record", gone, "cmkfs.zone removed", "zone", **hidden)
    other = symlink(secret.cipher + "cmkfs.zone", str(objects[inner.cipher + "cmkfs.zone"]))
    add.add("zone-with-another-record", [other], "record of another zone", "zone", **hidden)
    name = b64(SECRET_ZONE.record(root.dir_id, secret.dir_id, b"docs"))
    other = symlink(secret.cipher + "cmkfs.zone", name)
    add.add("zone-record-with-another-name", [other], "record for another name", "zone", **hidden)
    plain = symlink(secret.cipher + "cmkfs.dir", b64(ROOT_ZONE.directory(rnd("new", 16))))
    add.add("zone-root-of-the-parents-zone", [plain], "a directory of the zone around it", "zones", **hidden)
    dir_id = symlink(secret.cipher + "cmkfs.dir", b64(SECRET_ZONE.directory(rnd("new", 16))))
    add.add("zone-root-with-another-id", [dir_id], "another directory of the zone", "zones", **hidden)
    swap = [to("exchange", secret.cipher[:-1], docs.cipher[:-1])]
    docs_too = [path for path in made.vault.plain if bytes.fromhex(path).startswith(b"docs/")]
    both = {**add.damaged(root, b"secret"), **add.damaged(root, b"docs")}
    fault = "a zone's root in the place of a plain directory"
    add.add("zone-root-swapped", swap, fault, "zones", gone=[*below, *docs_too], changed=both)
    new = [to("move", secret.cipher[:-1], root.entry(b"elsewhere"))]
    moved: Row = {"gone": [b"secret".hex()], "changed": add.damaged(root, b"elsewhere")}
    add.add("zone-root-renamed", new, "a zone's root under another name", "zones", **moved)


def _object_faults(add: TreeVectors) -> None:
    made, root, docs, more = add.made, add.made.root, add.made.docs, add.made.more
    secret, inner, objects = made.secret, made.inner, made.vault.objects
    hello, plan = root.entry(b"hello.txt"), secret.entry(b"plan")
    moved = [to("move", docs.entry(ODD), root.cipher + docs.entry(ODD).rsplit("/", 1)[1])]
    gone = [docs.path(ODD).hex()]
    add.add("name-moved-to-another-directory", moved, "a name of another directory", "name", gone=gone)
    sidecar = str(next(path for path in objects if path.startswith(docs.cipher + "cmkfs.long.")))
    entry = sidecar.replace("cmkfs.long.", "long.")
    lost = [path for path in made.vault.plain if _backing(made, docs, path) == entry]
    add.add("sidecar-removed", [{"do": "remove", "path": sidecar}], "no sidecar", "name", gone=lost)
    copied = [to("copy", plan, root.entry(b"copied"))]
    add.add(
        "file-of-another-zone",
        copied,
        "a file of another zone",
        "header",
        changed=add.damaged(root, b"copied"),
    )
    out = [to("copy", secret.entry(b"out"), root.entry(b"out"))]
    add.add("symlink-of-another-zone", out, "a symlink of another zone", "link", changed=add.damaged(root, b"out"))
    swapped = [to("exchange", plan, inner.entry(b"plan"))]
    both = {**add.damaged(secret, b"plan"), **add.damaged(inner, b"plan")}
    add.add("files-swapped-between-zones", swapped, "files of two zones exchanged", "header", changed=both)
    clone = [root.path(b"clone").hex(), b"hello.txt".hex()]
    add.add(
        "file-cloned",
        [to("copy", hello, root.entry(b"clone"))],
        "one file twice",
        "header",
        errors_any_of=clone,
    )
    clone = [docs.path(b"clone").hex(), b"more".hex()]
    copied = [to("copy", more.cipher[:-1], docs.entry(b"clone"))]
    add.add("directory-cloned", copied, "one directory twice", "dir", errors_any_of=clone)
    empty = [add.write(hello, b"")]
    add.add("file-cut-to-nothing", empty, "cut to nothing", "header", changed=add.damaged(root, b"hello.txt"))
    parts = sorted(path for path in objects if path.startswith("cmkfs.links/"))
    number = [str(objects[more.entry(b"to-4095")]).split(".")[1], ".1"]
    part = next(path for path in parts if number[0] in path and path.endswith(number[1]))
    far = add.damaged(more, b"to-4095")
    add.add("link-part-removed", [{"do": "remove", "path": part}], "a part removed", "link", changed=far)
    bad = [symlink(docs.cipher + "cmkfs.dir", str(objects[more.cipher + "cmkfs.dir"]))]
    below = [path for path in made.vault.plain if bytes.fromhex(path).startswith(b"docs/")]
    one_id = "cmkfs.dir of another directory: nothing in it authenticates, and one id is at two places"
    add.add("directory-id-copied", bad, one_id, "dir", gone=below, errors_any_of=[b"docs".hex(), b"more".hex()])


def _backing(made: Made, parent: Directory, path: str) -> str | None:
    plain = bytes.fromhex(path)
    if not plain.startswith(parent.plain + b"/") or b"/" in plain[len(parent.plain) + 1 :]:
        return None
    return parent.entry(plain[len(parent.plain) + 1 :])


def _xattr_faults(add: TreeVectors) -> None:
    made, root = add.made, add.made.root
    hello, odd = root.entry(b"hello.txt"), made.docs.entry(ODD)
    owner = FileSpec(f"vault {b'hello.txt'.hex()}", ROOT_ZONE).file_id
    mime, empty = ROOT_ZONE.attribute(owner, b"user.mime"), ROOT_ZONE.attribute(owner, b"user.empty")
    sealed = made.vault.xattrs[hello]
    node = dict(made.vault.plain[b"hello.txt".hex()])
    node["xattrs"] = {name: value for name, value in node["xattrs"].items() if name != b"user.mime".hex()}
    for name, value in (
        ("flipped", flip(bytes.fromhex(sealed[mime]), 20)),
        ("of-another", bytes.fromhex(sealed[empty])),
    ):
        change = {"do": "setxattr", "path": hello, "attribute": mime, "value": value.hex()}
        changed = {b"hello.txt".hex(): {**node, "damaged_xattrs": [mime]}}
        add.add(f"xattr-{name}", [change], f"value {name}", "xattr", changed=changed)
    path = made.docs.path(ODD)
    change = {"do": "setxattr", "path": odd, "attribute": mime, "value": sealed[mime]}
    changed = {path.hex(): {**add.node(path), "damaged_xattrs": [mime]}}
    add.add("xattr-of-another-file", [change], "an attribute of another file", "xattr", changed=changed)


def tree_vectors(made: Made, blob: Blob) -> list[Row]:
    """All of layer `tree`."""
    add = TreeVectors(made, blob)
    for part in (_unchanged, _vault_faults, _zone_faults, _object_faults, _xattr_faults):
        part(add)
    return add.rows
