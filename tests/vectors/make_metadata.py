"""The vectors of the layers `primitive`, `keys`, `vaultfile`, `wrap`, `zone`, `zones` and `session`."""

from collections.abc import Iterator
from typing import Any

from make_files import FILE, OTHER_ZONE, ROOT_ZONE
from make_headers import token_inputs
from primitives import b64, sha256, siv_seal, xaes_seal
from rows import Row, flip, row
from sealing import (
    ALIEN,
    ALPHA,
    ALPHA_2,
    VAULT_HASH,
    commitment,
    rnd,
    vault_file,
)

DIR_ID, PARENT_ID = rnd("directory", 16), rnd("parent", 16)
ZONE = {"zone_id": ROOT_ZONE.zone_id.hex(), "zone_secret": ROOT_ZONE.secret.hex()}
VAULT = {"vault_hash": VAULT_HASH.hex()}
LABELS = ("names", "directories", "links", "xattrs", "records", "session", "header")


def primitive_vectors() -> list[Row]:
    """Published vectors, then some of our own where the standards' do not reach."""
    nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX".hex()
    xaes = {"function": "xaes", "nonce": nonce, "plain": b"XAES-256-GCM".hex()}
    siv_key = "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
    siv_ad = "101112131415161718191a1b1c1d1e1f2021222324252627"
    siv = {"function": "siv", "key": siv_key, "associated": [siv_ad], "plain": "112233445566778899aabbccddee"}
    kdf: Row = {"function": "kdf", "key": "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"}
    kdf |= {"info": "f0f1f2f3f4f5f6f7f8f9", "length": 42}
    okm = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    mac = {"function": "mac", "key": b"Jefe".hex(), "message": b"what do ya want for nothing?".hex()}
    tag = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    empty = {"function": "siv", "key": rnd("siv", 64).hex(), "associated": ["00", "ff" * 32], "plain": ""}
    sealed = siv_seal(rnd("siv", 64), [b"\0", b"\xff" * 32], b"")
    return [
        row("xaes-c2sp-msb-0", {**xaes, "key": "01" * 32, "associated": ""}, {"output": XAES_1}),
        row(
            "xaes-c2sp-msb-1",
            {**xaes, "key": "03" * 32, "associated": b"c2sp.org/XAES-256-GCM".hex()},
            {"output": XAES_2},
        ),
        row("siv-rfc5297-a1", siv, {"output": "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c"}),
        row("siv-of-nothing", empty, {"output": sealed.hex()}),
        row("kdf-rfc5869-a1-expand", kdf, {"output": okm}),
        row("mac-rfc4231-2", mac, {"output": tag}),
    ]


XAES_1 = "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
XAES_2 = "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"


def key_vectors() -> list[Row]:
    """Layer `keys`: what follows from a zone secret, and from a DEK with a zone's header secret."""
    rows = []
    for zone in (ROOT_ZONE, OTHER_ZONE):
        expect = {label: zone.key(label).hex() for label in LABELS} | {"commitment": commitment(zone.secret).hex()}
        rows.append(row(f"zone-{zone.label}", {"zone_secret": zone.secret.hex()}, expect))
    expect = {"content_key": FILE.content_key.hex(), "header_key": FILE.header_key.hex()}
    inputs = {"dek": FILE.dek.hex(), "zone_header_secret": ROOT_ZONE.key("header").hex()}
    return [*rows, row("file", inputs, {**expect, "commitment": commitment(FILE.dek).hex()})]


def vaultfile_vectors() -> list[Row]:
    """Layer `vaultfile`."""
    good = {"vault_id": rnd("vault id", 16).hex()}
    spaced = vault_file().replace(b":", b": ").replace(b",", b", ")
    rows = [
        row(name, {"raw": raw.hex()}, {**good, "vault_hash": sha256(raw).hex()})
        for name, raw in (("written", vault_file()), ("no-newline", vault_file()[:-1]), ("spaced", spaced))
    ]
    for name, raw, error in (
        ("format-2", vault_file(format=2), "unknown-format"),
        ("format-2-and-more", vault_file(format=2, new=1), "unknown-format"),
        ("format-0", vault_file(format=0), "damaged"),
        ("format-text", vault_file(format="1"), "damaged"),
        ("block-size-8192", vault_file(block_size=8192), "unknown-format"),
        ("unknown-feature", vault_file(features=["compression"]), "unknown-format"),
        ("unknown-key", vault_file(colour="red"), "unknown-format"),
        ("no-vault-id", vault_file(vault_id=None), "damaged"),
        ("no-features", vault_file(features=None), "damaged"),
        ("vault-id-short", vault_file(vault_id="00" * 15), "damaged"),
        ("vault-id-not-hex", vault_file(vault_id="g0" * 16), "damaged"),
        ("another-kind", vault_file(cmkfs="zone"), "damaged"),
        ("not-an-object", b"[]\n", "damaged"),
        ("not-json", vault_file()[:-3], "damaged"),
        ("not-utf-8", b"\xff" + vault_file(), "damaged"),
        ("empty", b"", "damaged"),
    ):
        rows.append(row(name, {"raw": raw.hex()}, error, name.replace("-", " "), "vaultfile"))
    return rows


def wrap_vectors() -> tuple[Row, list[Row]]:
    """Layer `wrap`: one recipient and what its context binds -> the secret."""
    secret, zone, thing = rnd("wrapped", 32), ROOT_ZONE.zone_id, rnd("object", 16)
    base = {
        "kind": 1,
        "zone_id": zone.hex(),
        "object_id": thing.hex(),
        "commitment": commitment(secret).hex(),
        **VAULT,
    }
    good = ALPHA.recipient(secret, 1, zone, thing, VAULT_HASH)
    rows = [
        row("file", {"recipient": good.hex()}, {"secret": secret.hex()}),
        row(
            "version-2",
            {"recipient": ALPHA_2.recipient(secret, 1, zone, thing, VAULT_HASH).hex()},
            {"secret": secret.hex()},
        ),
    ]
    kind = {"kind": 2, "recipient": ALPHA.recipient(secret, 2, zone, thing, VAULT_HASH).hex()}
    rows.append(row("zone", kind, {"secret": secret.hex()}))
    for field, value in (
        ("zone_id", zone),
        ("object_id", thing),
        ("commitment", commitment(secret)),
        ("vault_hash", VAULT_HASH),
    ):
        inputs = {"recipient": good.hex(), field: flip(value, 3).hex()}
        rows.append(row(f"other-{field}", inputs, "damaged", f"another {field} in the context", "wrap"))
    rows.append(row("other-kind", {"kind": 2, "recipient": good.hex()}, "damaged", "another kind", "wrap"))
    for at, field in ((23, "iv"), (35, "ciphertext"), (66, "ciphertext-end"), (67, "tag"), (82, "tag-end")):
        rows.append(
            row(
                f"flip-{field}",
                {"recipient": flip(good, at).hex()},
                "damaged",
                f"a bit of the {field}",
                "wrap",
            )
        )
    for at, field in ((4, "version"), (5, "cmk-id")):
        rows.append(
            row(
                f"flip-{field}",
                {"recipient": flip(good, at).hex()},
                "no-key",
                f"a bit of the {field}",
                "wrap",
            )
        )
    alien = ALIEN.recipient(secret, 1, zone, thing, VAULT_HASH)
    rows.append(row("cmk-not-in-the-token", {"recipient": alien.hex()}, "no-key", "another token", "wrap"))
    other = ALPHA.recipient(bytes(32), 1, zone, thing, VAULT_HASH, committed=commitment(secret))
    rows.append(row("not-the-committed-secret", {"recipient": other.hex()}, "damaged", "another secret", "wrap"))
    return {**base, **token_inputs()}, rows


def zone_vectors() -> tuple[Row, list[Row]]:
    """Layer `zone`: the target of `cmkfs.zone` -> zone and place."""
    good = ROOT_ZONE.record(PARENT_ID, DIR_ID, b"secret")
    rows = []
    for name, plain in (
        ("below", b"secret"),
        ("one-byte", b"x"),
        ("longest-name", b"n" * 255),
        ("any-bytes", b"\xff\1"),
    ):
        rows.append(row(name, {"target": b64(ROOT_ZONE.record(PARENT_ID, DIR_ID, plain))}, _place(PARENT_ID, plain)))
    root = ROOT_ZONE.record(bytes(16), DIR_ID, b"")
    rows.append(row("root", {"target": b64(root)}, _place(bytes(16), b"")))
    ends = {"magic": 0, "zone-id": 4, "zone-id-end": 19, "commitment": 20, "commitment-end": 51}
    places = {
        **ends,
        "iv": 75,
        "wrapped": 87,
        "tag": 134,
        "sealed-iv": 135,
        "sealed": 151,
        "sealed-end": len(good) - 1,
    }
    wraps = (
        "zone-id",
        "zone-id-end",
        "commitment",
        "commitment-end",
        "wrapped-length",
        "iv",
        "wrapped",
        "tag",
    )
    for field, at in places.items():
        layer = "wrap" if field in wraps else "zone"
        rows.append(row(f"flip-{field}", {"target": b64(flip(good, at))}, "damaged", f"a bit of {field}", layer))
    rows.append(row("flip-version", {"target": b64(flip(good, 56))}, "no-key", "a bit of the version", "wrap"))
    rows.append(row("flip-cmk-id", {"target": b64(flip(good, 57))}, "no-key", "a bit of the CMK id", "wrap"))
    rows.append(row("scheme-0", {"target": b64(flip(good, 52))}, "damaged", "scheme 0", "zone"))
    for name, changed, error in (
        ("feature-lowest", ROOT_ZONE.record(PARENT_ID, DIR_ID, b"x", features=1), "unknown-format"),
        ("feature-highest", ROOT_ZONE.record(PARENT_ID, DIR_ID, b"x", features=1 << 31), "unknown-format"),
        ("cut", good[:-1], "damaged"),
        ("cut-in-the-recipient", good[:100], "damaged"),
        ("cut-before-the-seal", good[:135], "damaged"),
        ("empty", b"", "damaged"),
        ("longer", good + b"\0", "damaged"),
        ("sealed-too-little", ROOT_ZONE.record(b"", DIR_ID, b""), "damaged"),
        (
            "sealed-of-another-zone",
            ROOT_ZONE.record(PARENT_ID, DIR_ID, b"x", sealed=_alien_seal()),
            "damaged",
        ),
    ):
        rows.append(row(name, {"target": b64(changed)}, error, name.replace("-", " "), "zone"))
    rows.append(row("padded", {"target": b64(good) + "=="}, "damaged", "base64 with padding", "zone"))
    other = ROOT_ZONE.record(PARENT_ID, DIR_ID, b"x", vault_hash=sha256(b"another vault"))
    rows.append(row("of-another-vault", {"target": b64(other)}, "damaged", "record of another vault", "wrap"))
    return {**VAULT, **token_inputs()}, rows


def _place(parent: bytes, name: bytes) -> Row:
    return {**ZONE, "parent_id": parent.hex(), "root_id": DIR_ID.hex(), "name": name.hex()}


def _alien_seal() -> bytes:
    return siv_seal(OTHER_ZONE.key("records"), [b"zone", VAULT_HASH, ROOT_ZONE.zone_id], bytes(40))


def zones_vectors() -> tuple[Row, list[Row]]:
    """Layer `zones`: the bytes of `cmkfs.zones` -> the list."""
    entries = [(rnd(f"z{n}", 16), rnd(f"p{n}", 16), rnd(f"r{n}", 16), b"n" * n) for n in (1, 255, 16)]
    good = ROOT_ZONE.zone_list(entries)
    rows = []
    for name, listed in (("none", []), ("one", entries[:1]), ("three", entries)):
        fields = ("zone_id", "parent_id", "root_id", "name")
        expect = {"zones": [dict(zip(fields, (part.hex() for part in one), strict=True)) for one in listed]}
        rows.append(row(name, {"raw": ROOT_ZONE.zone_list(listed).hex()}, expect))
    plain = b"".join(entries[0][:3]) + b"\1n"
    none = ROOT_ZONE.zone_list([])
    for name, raw in (
        ("flip-nonce", flip(good, 0)),
        ("flip-iv", flip(good, 16)),
        ("flip-entries", flip(good, 40)),
        ("flip-last", flip(good, -1)),
        ("none-flipped", flip(none, 20)),
        ("cut-to-nothing", b""),
        ("cut-to-the-nonce", good[:16]),
        ("cut-by-a-byte", good[:-1]),
        ("longer", good + b"\0"),
        ("of-another-zone", OTHER_ZONE.zone_list(entries)),
        ("sealed-name-longer-than-the-rest", ROOT_ZONE.zone_list([], plain[:-2] + b"\2n")),
        ("sealed-half-an-entry", ROOT_ZONE.zone_list([], plain + plain[:20])),
    ):
        rows.append(row(name, {"raw": raw.hex()}, "damaged", name.replace("-", " "), "zones"))
    return {**ZONE, **VAULT}, rows


SessionRow = tuple[str, bytes, Any, str | None]


def _session_rows() -> Iterator[SessionRow]:
    def both(first: tuple[int, int, int], second: tuple[int, int, int], **over: bytes) -> bytes:
        sequence, state, since = second
        return ROOT_ZONE.session_slot(0, *first) + ROOT_ZONE.session_slot(1, sequence, state, since, **over)

    closed, opened = (1, 1, 10), (2, 2, 20)
    yield "closed", both((1, 2, 10), (2, 1, 20)), (False, 20), None
    yield "open", both(closed, opened), (True, 20), None
    yield "slot-0-counts", both((3, 1, 30), opened), (False, 30), None
    yield "since-all", both(closed, (2, 2, 0)), (True, 0), None
    yield "largest-values", both(closed, ((1 << 64) - 1, 2, (1 << 64) - 1)), (True, (1 << 64) - 1), None
    good = both((1, 1, 10), (2, 1, 20))
    fields = {
        "sequence": 0,
        "state": 8,
        "zero": 9,
        "session-id": 16,
        "since": 32,
        "tail": 40,
        "mac": 480,
        "mac-end": 511,
    }
    for field, at in fields.items():
        yield f"flip-newer-{field}", flip(good, 512 + at), (True, 10), f"a bit of {field} flipped"
        yield f"flip-older-{field}", flip(good, at), (True, 20), f"a bit of {field} flipped"
    for name, raw, fault in (
        ("state-0", both((1, 1, 10), (2, 0, 20)), "state 0"),
        ("state-3", both((1, 1, 10), (2, 3, 20)), "state 3"),
        ("zero-bytes", both((1, 1, 10), (2, 1, 20), zero=bytes(6) + b"\1"), "bytes 9 to 15"),
        ("tail-bytes", both((1, 1, 10), (2, 1, 20), tail=bytes(439) + b"\1"), "bytes 40 to 479"),
        ("newer-zeroed", good[:512] + bytes(512), "a slot zeroed"),
    ):
        yield name, raw, (True, 10), fault
    other = both((1, 1, 10), (2, 1, 20), vault_hash=sha256(b"another vault"))
    yield "one-of-another-vault", other, (True, 10), "a slot of another vault"
    yield "both-flipped", flip(flip(good, 5), 600), "damaged", "both slots damaged"
    yield "both-zeroed", bytes(1024), "damaged", "both slots zeroed"
    yield "exchanged", good[512:] + good[:512], "damaged", "the slots exchanged"
    yield "one-sequence", both((2, 1, 10), (2, 2, 20)), "damaged", "two slots with one sequence"
    foreign = OTHER_ZONE.session_slot(0, 1, 1) + OTHER_ZONE.session_slot(1, 2, 1)
    yield "of-another-zone", foreign, "damaged", "under the key of another zone"
    yield "empty", b"", "damaged", "cut to nothing"
    yield "one-slot", good[:512], "damaged", "cut to one slot"
    yield "longer", good + b"\0", "damaged", "a byte more"


def session_vectors() -> tuple[Row, list[Row]]:
    """Layer `session`: the bytes of `cmkfs.session` -> was the last session closed?"""
    rows = []
    for name, raw, outcome, fault in _session_rows():
        expect = outcome if isinstance(outcome, str) else {"unclosed": outcome[0], "since": outcome[1]}
        rows.append(row(name, {"raw": raw.hex()}, expect, fault, "session"))
    return {**ZONE, **VAULT}, rows


def check_published() -> None:
    """The published vectors hold for the primitives that seal everything else; AssertionError if not."""
    nonce, plain = b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM"
    assert xaes_seal(b"\1" * 32, nonce, plain, b"").hex() == XAES_1
    assert xaes_seal(b"\3" * 32, nonce, plain, b"c2sp.org/XAES-256-GCM").hex() == XAES_2
