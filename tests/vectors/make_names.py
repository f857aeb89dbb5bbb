"""The vectors of the layers `dir`, `name`, `link` and `xattr`."""

from collections.abc import Iterator

from make_files import OTHER_ZONE, ROOT_ZONE
from make_metadata import DIR_ID, PARENT_ID, ZONE
from primitives import b64, siv_seal
from rows import Row, flip, row
from sealing import ZoneSpec, link_parts, long_entry, number, rnd, text


def dir_vectors() -> tuple[Row, list[Row]]:
    """Layer `dir`: the target of `cmkfs.dir` -> the directory id."""
    good = ROOT_ZONE.directory(DIR_ID)
    rows = [row("id", {"target": b64(good)}, {"dir_id": DIR_ID.hex()})]
    rows.append(row("zeros", {"target": b64(ROOT_ZONE.directory(bytes(16)))}, {"dir_id": bytes(16).hex()}))
    relabelled = ROOT_ZONE.zone_id + OTHER_ZONE.directory(DIR_ID)[16:]
    for name, target in (
        ("flip-zone-id", b64(flip(good, 0))),
        ("flip-zone-id-end", b64(flip(good, 15))),
        ("flip-iv", b64(flip(good, 16))),
        ("flip-id", b64(flip(good, 32))),
        ("flip-id-end", b64(flip(good, 47, 128))),
        ("of-another-zone", b64(OTHER_ZONE.directory(DIR_ID))),
        ("of-another-zone-relabelled", b64(relabelled)),
        ("15-bytes", b64(ROOT_ZONE.directory(bytes(15)))),
        ("17-bytes", b64(ROOT_ZONE.directory(bytes(17)))),
        ("cut", b64(good)[:-1]),
        ("cut-to-the-zone-id", b64(good[:16])),
        ("a-character-more", b64(good) + "A"),
        ("slash-for-underscore", "/" + b64(good)[1:]),
    ):
        rows.append(row(name, {"target": target}, "damaged", name.replace("-", " "), "dir"))
    return ZONE, rows


def name_vectors() -> tuple[Row, list[Row]]:
    """Layer `name`: a backing entry and, for a long one, the target of its sidecar -> the plain name."""
    rows = []
    names = [b"n" * length for length in (1, 2, 15, 16, 17, 159, 160, 161, 176, 177, 254, 255)]
    odd = [
        bytes(range(1, 47)),
        bytes(range(48, 256)),
        b"...",
        b" ",
        b"\n",
        b"cmkfs.dir",
        b"long.x",
        "äß€".encode(),
    ]
    for number_, name in enumerate([*names, *odd]):
        cipher = ROOT_ZONE.name(DIR_ID, name)
        entry, sidecar = (cipher, None) if len(cipher) <= 255 else (long_entry(cipher), cipher)
        rows.append(row(f"name-{number_}-of-{len(name)}", {"entry": entry, "sidecar": sidecar}, {"name": name.hex()}))
    for label, entry, sidecar in _bad_names():
        rows.append(row(label, {"entry": entry, "sidecar": sidecar}, "damaged", label.replace("-", " "), "name"))
    return {**ZONE, "dir_id": DIR_ID.hex()}, rows


def _bad_names() -> Iterator[tuple[str, str, str | None]]:
    raw = siv_seal(ROOT_ZONE.key("names"), [DIR_ID], b"name".ljust(16, b"\0"))
    cipher = b64(raw)
    for field, at in (("iv", 0), ("iv-end", 15), ("name", 16), ("name-end", 31)):
        yield f"flip-{field}", b64(flip(raw, at)), None
    yield "of-another-directory", ROOT_ZONE.name(PARENT_ID, b"name"), None
    yield "of-another-zone", OTHER_ZONE.name(DIR_ID, b"name"), None
    spare = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    yield "spare-bits-not-zero", cipher[:-1] + spare[spare.index(cipher[-1]) + 1], None
    yield "base64-padding", cipher + "=", None
    yield "a-newline-at-the-end", cipher + "\n", None
    yield "a-character-less", cipher[:-1], None
    yield "a-block-less", cipher[:21], None
    yield "not-base64", "README", None
    yield "with-a-dot", cipher[:20] + "." + cipher[20:], None
    for label, padded in (
        ("sealed-empty", bytes(16)),
        ("sealed-nothing", b""),
        ("sealed-nul-inside", b"a\0b".ljust(16, b"\0")),
        ("sealed-slash", b"a/b".ljust(16, b"\0")),
        ("sealed-dot", b".".ljust(16, b"\0")),
        ("sealed-dot-dot", b"..".ljust(16, b"\0")),
        ("sealed-unpadded", b"name"),
        ("sealed-padded-by-a-block", b"name".ljust(32, b"\0")),
        ("sealed-16-padded", b"n" * 16 + bytes(16)),
    ):
        yield label, ROOT_ZONE.sealed_name(DIR_ID, padded), None
    long, other = ROOT_ZONE.name(DIR_ID, b"l" * 161), ROOT_ZONE.name(DIR_ID, b"o" * 161)
    yield "long-without-sidecar", long_entry(long), None
    yield "long-with-another-sidecar", long_entry(long), other
    yield "long-hash-of-another", long_entry(other), long
    yield "long-not-a-hash", "long.AAAA", long
    yield "long-form-of-a-short-name", long_entry(cipher), cipher
    bad = ("A" if long[9] != "A" else "B").join((long[:9], long[10:]))
    yield "long-flipped-with-its-hash", long_entry(bad), bad
    moved = ROOT_ZONE.name(PARENT_ID, b"l" * 161)
    yield "long-of-another-directory", long_entry(moved), moved
    whole = ROOT_ZONE.sealed_name(DIR_ID, b"n" * 256)
    yield "sealed-256-bytes", long_entry(whole), whole


def link_vectors() -> tuple[Row, list[Row]]:
    """Layer `link`: a backing symlink's target and the parts in `cmkfs.links` -> the plain target."""
    rows = []
    for length in (1, 2, 3, 16, 717, 718, 719, 720, 1468, 1469, 4094, 4095):
        target = text(f"link {length}", length)
        sealed = ROOT_ZONE.link(target)
        entry, parts = (sealed, {}) if len(sealed) <= 1000 else link_parts(f"link {length}", sealed, length)
        rows.append(row(f"of-{length}", {"target": entry, "parts": parts}, {"target": target.hex()}))
    for name, entry, parts in _bad_links():
        rows.append(row(name, {"target": entry, "parts": parts}, "damaged", name.replace("-", " "), "link"))
    return ZONE, rows


def _bad_links() -> Iterator[tuple[str, str, dict[str, str]]]:
    sealed = ROOT_ZONE.link(b"/etc/hostname")
    for field, at in (("nonce", 0), ("iv", 16), ("target", 32), ("target-end", 44)):
        raw = siv_raw(ROOT_ZONE, b"/etc/hostname")
        yield f"flip-{field}", b64(flip(raw, at)), {}
    yield "of-another-zone", OTHER_ZONE.link(b"/etc/hostname"), {}
    yield "plain", "/etc/hostname", {}
    yield "cut", sealed[:-4], {}
    yield "less-than-44", sealed[:40], {}
    yield "sealed-nothing", ROOT_ZONE.link(b""), {}
    yield "sealed-nul", ROOT_ZONE.link(b"a\0b"), {}
    yield "one-piece-of-1002", ROOT_ZONE.link(text("one piece", 719)), {}
    long, other = (text(f"long {n}", 1500) for n in (1, 2))
    entry, parts = link_parts("long", ROOT_ZONE.link(long), 1500)
    _, others = link_parts("long", ROOT_ZONE.link(other), 1500)
    first, second, third = parts
    base, count, _ = entry.rsplit(".", 2)
    yield "length-wrong", f"{base}.{count}.1501", parts
    yield "length-leading-zero", f"{base}.{count}.01500", parts
    yield "count-less", f"{base}.2.1500", parts
    yield "count-more", f"{base}.4.1500", parts
    yield "count-0", f"{base}.0.1500", parts
    yield "count-7", f"{base}.7.1500", parts
    yield "no-length", f"{base}.{count}", parts
    yield "part-missing", entry, {first: parts[first], third: parts[third]}
    yield "part-of-another", entry, {**parts, second: others[second]}
    yield "parts-exchanged", entry, {**parts, first: parts[second], second: parts[first]}
    yield "part-longer", entry, {**parts, first: parts[first] + "A"}
    yield (
        "part-divided-elsewhere",
        entry,
        {**parts, first: parts[first][:-1], second: parts[first][-1] + parts[second]},
    )
    changed = ("A" if parts[second][5] != "A" else "B").join((parts[second][:5], parts[second][6:]))
    yield "part-flipped", entry, {**parts, second: changed}
    short = ROOT_ZONE.link(b"short")
    entry, parts = link_parts("short", short, 5)
    yield "short-one-in-parts", entry, parts
    too_long = ROOT_ZONE.link(b"t" * 4096)
    yield "sealed-4096", *link_parts("too long", too_long, 4096)


def siv_raw(zone: ZoneSpec, target: bytes) -> bytes:
    """The bytes of a sealed target, before base64."""
    nonce = rnd("raw link", 16)
    return nonce + siv_seal(zone.key("links"), [b"link", zone.zone_id, nonce], target)


def xattr_vectors() -> tuple[Row, list[Row]]:
    """Layer `xattr`: a backing attribute of an object -> name and value."""
    rows = []
    for name, plain, value in (
        ("small", b"user.mime", b"text/plain"),
        ("no-value", b"user.e", b""),
        ("one-byte-name", b"u", b"v"),
        ("longest-name", b"user." + b"n" * 250, b"x"),
        ("any-bytes", b"user.\xff", bytes(range(256))),
        ("long-value", b"user.long", text("long value", 5000)),
    ):
        backing = ROOT_ZONE.attribute(DIR_ID, plain)
        sealed = ROOT_ZONE.value(DIR_ID, backing, number(len(plain), 1) + plain + value)
        inputs = {"attribute": backing, "value": sealed.hex()}
        rows.append(row(name, inputs, {"name": plain.hex(), "value": value.hex()}))
    backing, other = ROOT_ZONE.attribute(DIR_ID, b"user.mime"), ROOT_ZONE.attribute(DIR_ID, b"user.other")
    plain = b"\x09user.mimetext"
    good = ROOT_ZONE.value(DIR_ID, backing, plain)
    for name, attribute, raw in (
        ("flip-nonce", backing, flip(good, 0)),
        ("flip-iv", backing, flip(good, 16)),
        ("flip-length", backing, flip(good, 32)),
        ("flip-value", backing, flip(good, -1)),
        ("flip-attribute", backing[:-2] + ("A" if backing[-2] != "A" else "B") + backing[-1], good),
        ("under-another-attribute", other, good),
        ("of-another-object", backing, ROOT_ZONE.value(PARENT_ID, backing, plain)),
        ("of-another-zone", backing, OTHER_ZONE.value(DIR_ID, backing, plain)),
        ("cut", backing, good[:-1]),
        ("cut-to-the-nonce", backing, good[:16]),
        ("empty", backing, b""),
        ("sealed-without-a-name", backing, ROOT_ZONE.value(DIR_ID, backing, b"\0text")),
        ("sealed-name-longer-than-the-rest", backing, ROOT_ZONE.value(DIR_ID, backing, b"\x0auser.mime")),
        ("sealed-another-name", backing, ROOT_ZONE.value(DIR_ID, backing, b"\x0auser.othertext")),
    ):
        rows.append(row(name, {"attribute": attribute, "value": raw.hex()}, "damaged", name.replace("-", " "), "xattr"))
    return {**ZONE, "object_id": DIR_ID.hex()}, rows
