"""The configuration file and mount options."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs import config
from cmkfs.config import Config, MountOptions, PinSource, TokenConfig, parse, parse_options
from cmkfs.errors import ConfigError, UsageError

FULL = """
# A token behind a module.
[token]
module = "/usr/lib/vendor.so"
label = "prod"
serial = "0011"
softhsm2_conf = "/etc/softhsm2.conf"
deadline = 2
pin_source = { command = [
    "pass", "hsm/pin",
] }

[mount]
idle_minutes = 30
revocation_bound = 0.5
fuse = ["noatime"]
"""


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert config.load(tmp_path / "cmkfs.toml") == Config()
    assert Config().token == TokenConfig(module=None, label="cmkfs", serial=None, deadline=5.0)


def test_every_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(FULL)
    assert config.load(tmp_path / "c.toml") == Config(
        token=TokenConfig(
            module="/usr/lib/vendor.so",
            label="prod",
            serial="0011",
            pin_source=PinSource(command=("pass", "hsm/pin")),
            softhsm2_conf=Path("/etc/softhsm2.conf"),
            deadline=2.0,
        ),
        mount=MountOptions(idle_minutes=30, revocation_bound=0.5, fuse=("noatime",)),
    )


MODULE = '[token]\nmodule = "/x.so"\n'

WRONG = {
    "unknown table": ("[tokn]\n", "1: unknown field 'tokn'"),
    "unknown field": ('[token]\n\nlable = "x"\n', "3: unknown field 'token.lable'"),
    "unknown field inline": (
        MODULE + 'pin_source = { fil = "x" }',
        "3: unknown field 'token.pin_source.fil'",
    ),
    "unknown field of a table": (
        MODULE + '[token.pin_source]\n\nfil = ""',
        "5: unknown field 'token.pin_source.fil'",
    ),
    "the first of two": (
        "[mount]\nnoxattr = 1\nx = 1\n",
        "2: mount.noxattr: input should be a valid boolean",
    ),
    "type": ('[token]\nlabel = 3\nmodule = ""\n', "2: token.label: input should be a valid string"),
    "no coercion": (
        '[mount]\n\nidle_minutes = "5"',
        "3: mount.idle_minutes: input should be a valid number",
    ),
    "date": ("[mount]\nacl = 1979-05-27", "2: mount.acl: input should be a valid boolean"),
    "range": ("[mount]\noutage_grace = -1", "2: mount: outage_grace must be between 0 and 604800, not -1"),
    "nan": (
        "[mount]\nrevocation_bound = nan",
        "2: mount: revocation_bound must be between 0.1 and 3600, not nan",
    ),
    "word": ('[mount]\nacl = true\nfuse = ["bogus"]', "3: mount: fuse has the unknown word 'bogus'"),
    "two sources": (
        MODULE + 'pin_source = { file = "x", env = "y" }',
        "3: token.pin_source: give exactly one of",
    ),
    "no source in table": (MODULE + "pin_source = {}", "3: token.pin_source: give exactly one of"),
    "prompt false": (MODULE + "pin_source = { prompt = false }", "3: token.pin_source: give exactly one of"),
    "empty command": (MODULE + "pin_source = { command = [] }", "3: token.pin_source: command is empty"),
    "pin in the file": (MODULE + 'pin_source = "1234"', "3: token.pin_source: input should be"),
    "pin for mounts of the embedded token": (
        '[token]\ndeadline = 1.0\n[token.mount]\npin_source = { env = "X" }',
        "3: token: mount goes with module",
    ),
    "no source for mounts": (
        MODULE + 'pin_source = { env = "X" }\n[token.mount]',
        "4: token.mount.pin_source: field required",
    ),
    "no pin source": (MODULE, "1: token: pin_source is missing"),
    "pin source without module": (
        '[token]\npin_source = { env = "X" }',
        "2: token: pin_source and softhsm2_conf go with",
    ),
    "not TOML": ("[token]\nlabel =\n", "2: not TOML: invalid value"),
    "end of file": ('[token]\nlabel = """\n', "3: not TOML: "),
    "table is no table": ("token = 3", "1: token: input should be an object"),
    "array of tables": ("[[token]]\n", "1: token: input should be an object"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, name="c.toml")
    assert str(caught.value).lower().startswith(f"c.toml:{message}".lower())
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_have_a_line_too(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"[token]\nlabel = '\xff'\n")
    with pytest.raises(ConfigError, match=r"c\.toml:2: not UTF-8"):
        config.load(tmp_path / "c.toml")


def test_a_directory_in_the_place_of_the_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(tmp_path)


@given(st.text())
def test_any_text_is_a_configuration_or_an_error_with_a_line(text: str) -> None:
    try:
        assert isinstance(parse(text, name="c.toml"), Config)
    except ConfigError as error:
        assert str(error).startswith("c.toml:")  # noqa: PT017


# -- Mount options ---------------------------------------------------------------------------------


def options(*texts: str) -> MountOptions:
    return parse_options(texts, defaults=MountOptions())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", MountOptions()),
        ("ro", MountOptions(read_only=True)),
        ("ro,rw", MountOptions()),
        (
            "allow_other,noxattr,acl,suid,dev",
            MountOptions(allow_other=True, noxattr=True, acl=True, suid=True, dev=True),
        ),
        ("suid,dev,nosuid,nodev", MountOptions()),
        ("idle=15", MountOptions(idle_minutes=15)),
        ("idle=0.5", MountOptions(idle_minutes=0.5)),
        ("revocation_bound=0.5,outage_grace=0", MountOptions(revocation_bound=0.5, outage_grace=0)),
        ("defaults,noauto,nofail,_netdev,x-systemd.automount,comment=hi", MountOptions()),
        ("noatime,default_permissions", MountOptions(fuse=("noatime", "default_permissions"))),
        ("exec,noexec", MountOptions(fuse=("noexec",))),
        ("fsname=a,fsname=b,max_read=65536", MountOptions(fuse=("fsname=b", "max_read=65536"))),
        ("suid,user", MountOptions(fuse=("noexec",))),
        ("users,exec", MountOptions(fuse=("exec",))),
    ],
)
def test_options_mean(text: str, expected: MountOptions) -> None:
    assert options(text) == expected


def test_several_o_are_one_and_win_over_the_configuration() -> None:
    defaults = MountOptions(read_only=True, noxattr=True)
    assert parse_options(["rw", "acl"], defaults=defaults) == MountOptions(noxattr=True, acl=True)


@pytest.mark.parametrize(
    "word",
    ["bogus", "idle", "idle=", "idle=x", "idle=0", "idle=nan", "ro=1", "outage_grace=-1", "outage_grace=nan",
     "revocation_bound=inf", "max_read=x", "max_read", "fsname=", "allow_root"],
)  # fmt: skip
def test_a_word_that_is_wrong_is_named(word: str) -> None:
    with pytest.raises(UsageError, match=f"mount option {word!r}"):
        options(f"ro,{word}")


@given(st.text())
def test_any_text_is_options_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(options(text), MountOptions)
