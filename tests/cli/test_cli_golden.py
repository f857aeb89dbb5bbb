"""What commands say and exit with when nothing is mounted: message by message."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import Cmkfs, Ran

POLICY = '[[rule]]\nid = "all"\neffect = "allow"\nwho = ["uid:0"]\nactions = ["*"]\n'

COMMANDS = [
    "token init", "token list", "token backup", "token restore", "cmk create", "cmk list", "cmk show",
    "cmk disable", "cmk enable", "init", "mount", "umount", "lock", "unlock", "status", "info", "check",
    "policy set", "policy unset", "policy show", "policy check", "policy explain",
]  # fmt: skip


# -- Help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(cmkfs: Cmkfs, command: str) -> None:
    out = cmkfs.ok(*command.split(), "--help")
    assert f"Example: cmkfs {command}" in " ".join(out.split())
    assert "--json" in out
    assert "--verbose" in out


def test_help_names_every_command(cmkfs: Cmkfs) -> None:
    out = cmkfs.ok("--help")
    assert {command.split()[0] for command in COMMANDS} <= set(out.split())
    assert "Example: cmkfs token init" in out


def test_no_command_is_wrong_usage(cmkfs: Cmkfs) -> None:
    ran = cmkfs()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: cmkfs")


# -- Errors without a token ------------------------------------------------------------------------

GOLDEN = {
    "nonsense": (2, "cmkfs: No such command 'nonsense'; try: cmkfs --help"),
    "cmk nonsense": (2, "cmkfs: No such command 'nonsense'; try: cmkfs cmk --help"),
    "cmk show": (2, "cmkfs: Missing argument 'NAME'; try: cmkfs cmk show --help"),
    "status --xyz": (2, "cmkfs: No such option '--xyz'; try: cmkfs status --help"),
    "cmk show main": (7, "cmkfs: there is no token in HOME/token; try: cmkfs token init"),
    "cmk show Main": (
        2,
        "cmkfs: 'Main' is no name for a CMK: 1 to 64 of a-z, 0-9, '.', '_', '-',"
        " a letter or digit first; try: cmkfs --help",
    ),
    "token backup b": (7, "cmkfs: there is no embedded token to back up; try: cmkfs token init"),
    "token restore nothing": (
        7,
        "cmkfs: WORK/nothing is not a backup of an embedded token; try: cmkfs token backup DIR",
    ),
    "init v --cmk main": (7, "cmkfs: there is no token in HOME/token; try: cmkfs token init"),
    "init no/v --cmk main": (7, "cmkfs: WORK/no does not exist; try: mkdir -p WORK/no"),
    "init full --cmk main": (1, "cmkfs: WORK/full is not empty; try: choose a new or empty directory"),
    "init file --cmk main": (1, "cmkfs: WORK/file is not a directory; try: choose a new or empty directory"),
    "init v": (2, "cmkfs: Missing option '--cmk'; try: cmkfs init --help"),
    "status nowhere": (7, "cmkfs: nothing of cmkfs is mounted at WORK/nowhere; try: cmkfs status"),
    "umount nowhere": (7, "cmkfs: WORK/nowhere does not exist; try: cmkfs status"),
    "umount /proc": (2, "cmkfs: what is mounted at /proc is proc, not cmkfs; try: umount /proc"),
    "lock": (2, "cmkfs: give exactly one of MOUNTPOINT, --cmk, --all; try: cmkfs --help"),
    "lock full --all": (2, "cmkfs: give exactly one of MOUNTPOINT, --cmk, --all; try: cmkfs --help"),
    "lock full": (7, "cmkfs: nothing of cmkfs is mounted at WORK/full; try: cmkfs status"),
    "unlock --cmk main": (7, "cmkfs: no mount uses CMK main; try: cmkfs status"),
    "info nowhere": (7, "cmkfs: WORK/nowhere: No such file or directory"),
    "info full": (7, "cmkfs: WORK/full is neither on a mount nor in a vault; try: cmkfs status"),
    "policy check nowhere": (7, "cmkfs: nowhere: No such file or directory"),
    "policy check file": (
        2,
        "cmkfs: file:1: unknown field 'x'; a policy has [[rule]] only",
    ),
    "check nowhere": (7, "cmkfs: nowhere does not exist; try: cmkfs init VAULT --cmk NAME"),
    "check full": (7, "cmkfs: full is not a vault: it has no cmkfs.vault; try: cmkfs init VAULT --cmk NAME"),
    "mount nowhere mp": (7, "cmkfs: nowhere does not exist; try: cmkfs init VAULT --cmk NAME"),
    "mount full mp": (
        7,
        "cmkfs: full is not a vault: it has no cmkfs.vault; try: cmkfs init VAULT --cmk NAME",
    ),
    "mount vault nowhere": (7, "cmkfs: the mount point WORK/nowhere does not exist; try: mkdir WORK/nowhere"),
    "mount vault file": (1, "cmkfs: the mount point WORK/file is not a directory; try: name a directory"),
    "mount vault full": (1, "cmkfs: the mount point WORK/full is not empty; try: name an empty directory"),
    "mount vault vault/mp": (
        2,
        "cmkfs: the mount point WORK/vault/mp is inside the vault WORK/vault; try: mount elsewhere",
    ),
    "mount vault .": (2, "cmkfs: the vault WORK/vault is inside the mount point WORK; try: mount elsewhere"),
    "mount vault vault": (
        2,
        "cmkfs: WORK/vault cannot be both vault and mount point; try: mkdir another mount point",
    ),
    "mount vault mp -o bogus": (2, "cmkfs: mount option 'bogus': unknown; try: cmkfs mount --help"),
    "mount vault mp -o idle=x": (
        2,
        "cmkfs: mount option 'idle=x': 'x' is not a number; try: cmkfs mount --help",
    ),
}


def prepare(cmkfs: Cmkfs) -> None:
    (cmkfs.work / "full").mkdir()
    (cmkfs.work / "full/x").touch()
    (cmkfs.work / "file").write_text("x = 1\n")
    (cmkfs.work / "mp").mkdir()
    (cmkfs.work / "vault/mp").mkdir(parents=True)
    (cmkfs.work / "vault/cmkfs.vault").touch()


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize("command", GOLDEN)
def test_an_error_is_one_line_with_its_code_and_changes_nothing(cmkfs: Cmkfs, command: str) -> None:
    code, message = GOLDEN[command]
    prepare(cmkfs)
    before = tree(cmkfs.work)
    assert cmkfs(*command.split()) == Ran(code, "", message + "\n")
    assert tree(cmkfs.work) == before
    assert not cmkfs.home.exists() or tree(cmkfs.home) == []


@pytest.mark.parametrize("command", ["status", "cmk list", "mount vault mp", "umount mp", "token init"])
def test_a_home_of_another_mode_stops_every_command(cmkfs: Cmkfs, command: str) -> None:
    prepare(cmkfs)
    cmkfs.home.mkdir(mode=0o755)
    cmkfs.home.chmod(0o755)
    assert cmkfs(*command.split()) == Ran(2, "", "cmkfs: HOME has mode 0755, must be 0700; try: chmod 0700 HOME\n")
    assert tree(cmkfs.home) == []


def test_a_home_too_long_for_a_socket_is_refused(cmkfs: Cmkfs) -> None:
    ran = cmkfs("status", CMKFS_HOME="/tmp/" + "x" * 90)
    assert ran.code == 2
    assert ran.err.endswith(
        "is too long for a Unix socket: 99 bytes, at most 78; try: set CMKFS_HOME to a shorter path\n"
    )


@pytest.mark.parametrize("command", ["cmk list", "token list", "mount vault mp"])
def test_a_wrong_configuration_is_named_with_its_line(cmkfs: Cmkfs, command: str) -> None:
    prepare(cmkfs)
    cmkfs.home.mkdir(mode=0o700)
    (cmkfs.home / "cmkfs.toml").write_text('[token]\n\nlable = "x"\n')
    assert cmkfs(*command.split()) == Ran(2, "", "cmkfs: HOME/cmkfs.toml:3: unknown field 'token.lable'\n")


def test_a_module_that_does_not_exist_says_what_to_do(cmkfs: Cmkfs) -> None:
    cmkfs.home.mkdir(mode=0o700)
    (cmkfs.home / "pin").write_text("1234")
    (cmkfs.home / "pin").chmod(0o600)
    (cmkfs.home / "cmkfs.toml").write_text(
        f'[token]\nmodule = "/no/module.so"\npin_source = {{ file = "{cmkfs.home}/pin" }}\n'
    )
    assert cmkfs("cmk", "list") == Ran(
        4,
        "",
        "cmkfs: the PKCS#11 module /no/module.so does not exist;"
        " try: set token.module, or install the module's package\n",
    )


def test_a_prompt_without_a_terminal_is_refused_and_not_hung(cmkfs: Cmkfs) -> None:
    cmkfs.home.mkdir(mode=0o700)
    (cmkfs.home / "cmkfs.toml").write_text('[token]\nmodule = "/no.so"\npin_source = { prompt = true }\n')
    ran = cmkfs("cmk", "list")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("cmkfs: there is no terminal to ask for the PIN on; try: ")


def test_a_traceback_comes_only_with_verbose(cmkfs: Cmkfs) -> None:
    assert "Traceback" not in cmkfs("cmk", "show", "main").err
    verbose = cmkfs("cmk", "show", "main", "--verbose").err
    assert "Traceback" in verbose
    assert verbose.splitlines()[-1] == "cmkfs: there is no token in HOME/token; try: cmkfs token init"


# -- Token and CMKs --------------------------------------------------------------------------------


def test_token_init_is_idempotent(cmkfs: Cmkfs) -> None:
    assert cmkfs.ok("token", "list") == "no token; try: cmkfs token init\n"
    assert cmkfs.ok("token", "init", "--label", "mine").startswith("made token 'mine' in HOME/token\n")
    again = cmkfs("token", "init")
    assert again == Ran(0, "the embedded token is there already: HOME/token\n", "")
    assert json.loads(cmkfs.ok("token", "init", "--json")) == {"created": False, "directory": "HOME/token"}
    (token,) = json.loads(cmkfs.ok("token", "list", "--json"))["tokens"]
    assert token["label"] == "mine"
    cmkfs.ok("cmk", "create", "main")


def test_a_backup_brings_the_token_back(cmkfs: Cmkfs) -> None:
    cmkfs.ok("token", "init")
    made = json.loads(cmkfs.ok("cmk", "create", "main", "--json"))
    assert cmkfs.ok("token", "backup", "b") == "copied the token to b\n"
    assert cmkfs("token", "restore", "b").code == 1
    other = Cmkfs(cmkfs.work.parent / "h2", cmkfs.work)
    assert other.ok("token", "restore", "b") == "restored the token from b\n"
    (found,) = json.loads(other.ok("cmk", "list", "--json"))["cmks"]
    assert found["cmk_id"] == made["cmk_id"]


def test_a_cmk_is_created_shown_and_listed(with_token: Cmkfs) -> None:
    assert with_token("cmk", "create", "main") == Ran(
        1, "", "cmkfs: the token has a CMK 'main' already; try: cmkfs cmk show main\n"
    )
    assert with_token("cmk", "show", "other") == Ran(
        7, "", "cmkfs: the token has no CMK 'other'; try: cmkfs cmk list\n"
    )
    shown = with_token.ok("cmk", "show", "main").splitlines()
    assert shown[0] == "name:         main"
    assert shown[2] == "state:        enabled (enforced by the token)"
    assert shown[-2:] == ["policy:       none", "mounts here:  none"]
    listed = with_token.ok("cmk", "list").splitlines()
    assert listed[0].split() == ["NAME", "STATE", "TYPE", "VERSIONS", "ORIGIN", "CREATED"]
    assert listed[1].split()[:5] == ["main", "enabled", "aes-256", "1", "generated"]
    document = json.loads(with_token.ok("cmk", "show", "main", "--json"))
    assert document["state"] == "enabled"
    assert document["mounts"] == []


def test_a_key_type_that_is_not_there_yet_is_wrong_usage(with_token: Cmkfs) -> None:
    ran = with_token("cmk", "create", "big", "--type", "rsa-4096")
    assert (ran.code, ran.out) == (2, "")
    assert "aes-256" in ran.err


def test_disable_and_enable_are_idempotent(with_token: Cmkfs) -> None:
    assert with_token.ok("cmk", "disable", "main") == "CMK main is disabled\n"
    assert with_token.ok("cmk", "disable", "main") == "CMK main is disabled already\n"
    assert json.loads(with_token.ok("cmk", "show", "main", "--json"))["state"] == "disabled"
    assert with_token("init", "v", "--cmk", "main") == Ran(
        4, "", "cmkfs: CMK main is disabled; try: cmkfs cmk enable main\n"
    )
    assert not (with_token.work / "v").exists()
    assert with_token.ok("cmk", "enable", "main") == "CMK main is enabled\n"
    document = json.loads(with_token.ok("cmk", "enable", "main", "--json"))
    assert document["changed"] is False
    assert document["unconfirmed"] == []


def test_a_policy_is_set_shown_byte_for_byte_and_unset(with_token: Cmkfs) -> None:
    text = "# who\r\n" + POLICY.replace("\n", "\n\t")[:-1]
    (with_token.work / "p.toml").write_bytes(text.encode())
    assert with_token.ok("policy", "check", "p.toml") == "p.toml: 1 rule, no errors\n"
    assert with_token.ok("policy", "set", "main", "p.toml").startswith("CMK main has policy ")
    assert with_token.ok("policy", "set", "main", "p.toml").endswith(" already\n")
    assert json.loads(with_token.ok("policy", "show", "main", "--json"))["policy"] == text
    assert with_token.ok("policy", "unset", "main") == "CMK main has no policy\n"
    assert with_token.ok("policy", "unset", "main") == "CMK main has no policy already\n"
    shown = with_token("policy", "show", "main")
    assert (shown.code, shown.out) == (0, "")
    assert shown.err.startswith("cmkfs: CMK main has no policy; without a policy only root")


def test_a_decision_is_explained(with_token: Cmkfs) -> None:
    window = """
[[rule]]
id = "by-day"
effect = "allow"
who = ["uid:4242"]
actions = ["read"]
hours = "08:00-18:00"
"""
    (with_token.work / "p.toml").write_text(POLICY + window)
    explain = ("policy", "explain", "main", "--user")
    assert with_token(*explain, "4242", "--action", "read") == Ran(
        3, "4242 may not read under CMK main: (no policy)\n", ""
    )
    with_token.ok("policy", "set", "main", "p.toml")
    assert with_token.ok(*explain, "root", "--action", "write") == "root may write under CMK main: all\n"
    at_noon = with_token.ok(*explain, "4242", "--action", "read", "--at", "2026-01-05T12:00:00+00:00", "--json")
    expected = {"name": "main", "uid": 4242, "action": "read", "allowed": True, "rule": "by-day"}
    assert json.loads(at_noon) == expected
    assert with_token(*explain, "4242", "--action", "read", "--at", "2026-01-05T19:00:00+00:00") == Ran(
        3, "4242 may not read under CMK main: (no rule)\n", ""
    )
    assert with_token(*explain, "no-such-user", "--action", "read") == Ran(
        2, "", "cmkfs: there is no user 'no-such-user'; try: give the uid\n"
    )
    with_token.ok("policy", "unset", "main")


def test_a_policy_with_an_unknown_user_is_refused_and_the_old_one_stays(with_token: Cmkfs) -> None:
    (with_token.work / "bad.toml").write_text(POLICY.replace("uid:0", "user:no-such-user"))
    assert with_token("policy", "set", "main", "bad.toml") == Ran(
        2, "", "cmkfs: bad.toml:4: this host knows no 'user no-such-user'\n"
    )
    assert json.loads(with_token.ok("policy", "show", "main", "--json"))["policy"] is None


# -- Vaults ----------------------------------------------------------------------------------------


def test_init_makes_a_vault_once(with_token: Cmkfs) -> None:
    assert with_token.ok("init", "vault", "--cmk", "main") == "made vault WORK/vault under CMK main\n"
    assert with_token("init", "vault", "--cmk", "main") == Ran(
        1, "", "cmkfs: WORK/vault is a vault already; try: cmkfs mount WORK/vault MOUNTPOINT\n"
    )
    assert json.loads(with_token.ok("info", "vault", "--json"))["kind"] == "directory"


def test_nothing_mounted_is_said(with_token: Cmkfs) -> None:
    assert with_token("status") == Ran(0, "nothing is mounted\n", "")
    assert json.loads(with_token.ok("status", "--json")) == {"mounts": []}
    assert with_token("lock", "--all") == Ran(0, "nothing is mounted\n", "")
    (with_token.work / "mp").mkdir(exist_ok=True)
    assert with_token("umount", "mp") == Ran(0, "WORK/mp is not mounted\n", "")


# -- Start-up --------------------------------------------------------------------------------------


def test_status_starts_without_what_it_does_not_need(with_token: Cmkfs) -> None:
    program = (
        "import sys; from cmkfs.cli.app import run; run(['status']);"
        "print(sorted({'trio', 'pkcs11', 'pydantic', 'cryptography'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=with_token.environment,
    )
    assert ran.stdout == "nothing is mounted\n[]\n"


def test_nothing_recorded_is_said(cmkfs: Cmkfs) -> None:
    assert cmkfs("audit", "show") == Ran(0, "", "cmkfs: nothing is recorded\n")
    nothing = "cmkfs: nothing like that is recorded; all: cmkfs audit show\n"
    assert cmkfs("audit", "show", "--event", "opn") == Ran(0, "", nothing)
    assert cmkfs.ok("audit", "show", "--event", "opn", "--json") == '{"records": []}\n'
