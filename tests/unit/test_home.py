"""Where things live."""

import os
from pathlib import Path

import pytest

from cmkfs.errors import ConfigError
from cmkfs.home import SOCKET_NAME_SIZE, SOCKET_PATH_LIMIT, Home, private_directory, private_tree


def test_cmkfs_home_holds_everything_and_is_made_private(tmp_path: Path) -> None:
    home = Home.from_environment({"CMKFS_HOME": str(tmp_path / "h")})
    assert home == Home(tmp_path / "h", tmp_path / "h", tmp_path / "h", tmp_path / "h/run")
    assert (tmp_path / "h").stat().st_mode & 0o7777 == 0o700
    assert home.token_dir == tmp_path / "h/token"
    assert home.config_file == tmp_path / "h/cmkfs.toml"


def test_a_relative_cmkfs_home_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.from_environment({"CMKFS_HOME": "h"}).root == tmp_path / "h"


def test_root_has_the_system_directories() -> None:
    home = Home.from_environment({}, uid=0)
    assert (home.config, home.state, home.runtime) == (
        Path("/etc/cmkfs"),
        Path("/var/lib/cmkfs"),
        Path("/run/cmkfs"),
    )
    assert home.root is None


def test_a_user_has_the_xdg_directories_and_none_is_made(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/run/user/7", "XDG_CONFIG_HOME": "not/absolute"}
    home = Home.from_environment(environ, uid=7)
    assert home.config == tmp_path / ".config/cmkfs"
    assert home.state == tmp_path / ".local/share/cmkfs"
    assert home.runtime == Path("/run/user/7/cmkfs")
    assert list(tmp_path.iterdir()) == []


def test_without_a_runtime_directory_sockets_are_beside_the_token() -> None:
    home = Home.from_environment({"HOME": "/home/x"}, uid=7)
    assert home.runtime == Path("/home/x/.local/share/cmkfs/run")


def test_a_user_without_home_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError, match="HOME") as caught:
        Home.from_environment({}, uid=7)
    assert "CMKFS_HOME" in caught.value.next_step


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o777, 0o600, 0o2700, 0o1700])
def test_another_mode_is_refused_and_not_changed(tmp_path: Path, mode: int) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h").chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}"):
        Home.from_environment({"CMKFS_HOME": str(tmp_path / "h")})
    assert (tmp_path / "h").stat().st_mode & 0o7777 == mode


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("")
    with pytest.raises(ConfigError, match="not a directory"):
        Home.from_environment({"CMKFS_HOME": str(tmp_path / "h")})


def test_parents_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot make"):
        Home.from_environment({"CMKFS_HOME": str(tmp_path / "no/h")})
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_someone_else_is_refused(tmp_path: Path) -> None:
    private_directory(tmp_path / "h")
    mine = os.geteuid()
    with pytest.raises(ConfigError, match=f"belongs to uid {mine}, not to you"):
        private_directory(tmp_path / "h", uid=mine + 1)


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    room = SOCKET_PATH_LIMIT - SOCKET_NAME_SIZE - len("/run")
    longest = "/" + "x" * (room - 1)
    too_long = longest + "y"
    with pytest.raises(ConfigError, match="too long for a Unix socket"):
        Home.from_environment({"CMKFS_HOME": too_long})
    assert not Path(too_long).exists()


def test_bytes_count_and_not_characters() -> None:
    with pytest.raises(ConfigError, match="too long"):
        Home.from_environment({"CMKFS_HOME": "/" + "ü" * 40})


def test_a_hostile_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        private_directory(tmp_path / "h")
    finally:
        os.umask(before)
    assert (tmp_path / "h").stat().st_mode & 0o7777 == 0o700


def test_private_tree_makes_parents(tmp_path: Path) -> None:
    assert private_tree(tmp_path / "a/b/c").stat().st_mode & 0o7777 == 0o700
