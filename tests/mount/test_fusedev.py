"""FuseDevice on real mounts, by root through mount(2) and by an ordinary user through fusermount3.

The filesystem is `tiny_fs.py` in a process of its own; every mount is taken down by the fixture.
"""

import errno
import json
import mmap
import os
import pwd
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cmkfs.fs.fusedev import clear_dead_mount, is_dead_mount
from cmkfs.fs.kernel_mount import MountEntry, mounted_at, parse_mountinfo
from cmkfs.fuse.init import NO_FLAGS, InitFlag

PROGRAM = Path(__file__).with_name("tiny_fs.py")
REPOSITORY = Path(__file__).parents[2]
USER = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants a user who has a name
NAMELESS = next(uid for uid in range(54321, 60000) if uid not in {user.pw_uid for user in pwd.getpwall()})
SECONDS = 20.0
HELLO, FILE = 2, 4
# Run in a mount namespace of its own: what is covered or mounted there is gone with the process.
PRIVATE = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]
HIDE_FUSECTL = 'mount -t tmpfs none /sys/fs/fuse/connections; exec "$@"'
SHOW_FUSECTL = 'mount -t fusectl none /sys/fs/fuse/connections; exec "$@"'


class RefusedError(Exception):
    """What tiny_fs answered instead of a result: class, message and hint of the error."""

    def __init__(self, answer: dict[str, str]) -> None:
        super().__init__(answer["message"])
        self.kind = answer["error"]
        self.hint = answer["hint"]


class Mounted:
    """A running tiny_fs."""

    def __init__(self, mountpoint: Path, process: subprocess.Popen[bytes]) -> None:
        self.mountpoint = mountpoint
        self.process = process
        self.pid: int = self._result("ready")["pid"]

    def __call__(self, op: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        return self._result("ok")

    def _result(self, key: str) -> dict[str, Any]:
        answer = json.loads(self.line())
        if "error" in answer:
            raise RefusedError(answer)
        found: dict[str, Any] = answer[key]
        return found

    def line(self) -> bytes:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        assert ready, "tiny_fs does not answer"
        return self.process.stdout.readline()

    def end(self) -> int:
        """Wait for it to end by itself."""
        assert json.loads(self.line()) == {"ended": True}
        return self.process.wait(SECONDS)

    def requests(self, name: str) -> int:
        count: int = self("requests")["requests"].get(name, 0)
        return count

    def cpu_seconds(self) -> float:
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def sleeps(self) -> bool:
        """True if every thread waits for something (proc_pid_stat(5))."""
        stats = (path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/stat"))
        return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)

    def mountinfo(self) -> tuple[MountEntry, bytes]:
        """The mount and its line, as the process' own namespace shows it."""
        text = Path(f"/proc/{self.pid}/mountinfo").read_bytes()
        entries = parse_mountinfo(text)
        [index] = [i for i, e in enumerate(entries) if e.mountpoint == os.fsencode(self.mountpoint)]
        return entries[index], text.splitlines()[index]


Mount = Callable[..., Mounted]


@pytest.fixture(scope="module", autouse=True)
def device_is_for_everybody() -> None:
    """/dev/fuse as udev makes it. Not put back: that would take it from tests that run at the same time."""
    os.chmod("/dev/fuse", 0o666)


@pytest.fixture
def mount() -> Iterator[Mount]:
    started: list[tuple[Path, Path, subprocess.Popen[bytes]]] = []

    def start(
        *,
        uid: int = 0,
        source: bytes = b"vault",
        flags: InitFlag = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.DIRECT_IO_ALLOW_MMAP,
        max_background: int = 64,
        poll_window: float = 200e-6,
        timeout: float = 300.0,
        max_tasks: int = 100,
        private: str = "",
        environment: dict[str, str] | None = None,
        mountpoint: Path | None = None,
        **request: Any,
    ) -> Mounted:
        scratch = Path(tempfile.mkdtemp(prefix="cmkfs-test-"))
        os.chown(scratch, uid, uid)
        where = mountpoint or scratch / "ä mount, point"
        if mountpoint is None:
            where.mkdir()
            os.chown(where, uid, uid)
        arguments = {
            "mountpoint": str(where),
            "source": source.hex(),
            "request": request,
            "uid": uid,
            "flags": flags,
            "max_background": max_background,
            "poll_window": poll_window,
            "timeout": timeout,
            "max_tasks": max_tasks,
        }
        prefix = [*PRIVATE, private, "sh"] if private else []
        process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", str(PROGRAM), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "HOME": str(scratch), "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        )
        started.append((scratch, where, process))
        return Mounted(where, process)

    yield start
    for scratch, where, process in started:
        process.kill()
        process.communicate()
        if mounted_at(os.fsencode(where)) is not None:
            subprocess.run(["umount", "--lazy", str(where)], check=True)
        shutil.rmtree(scratch)


def as_user(task: Callable[[], object]) -> object:
    """What `task` returns in a child that is the ordinary user."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            os.write(writer, json.dumps(task()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said, "the task raised"
    return json.loads(said)


both = pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])


# -- Mounting --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "source",
    [b"vault", "/srv/grün, a\\b \n\t#x".encode(), b"/\xff\xfe/-o,suid"],
    ids=["plain", "words", "bytes"],
)
def test_any_path_is_a_source_and_mounts_are_nosuid_nodev(mount: Mount, uid: int, source: bytes) -> None:
    mounted = mount(uid=uid, source=source)
    assert mounted("look", name="hello") == {"text": "hello"}
    entry, line = mounted.mountinfo()
    assert (entry.source, entry.fstype) == (source, b"fuse.cmkfs")
    assert b" rw,nosuid,nodev,relatime " in line
    assert f"user_id={uid},group_id={uid},default_permissions".encode() in line
    assert b"allow_other" not in line


def test_root_gets_suid_and_dev_when_asked(mount: Mount) -> None:
    _, line = mount(suid=True, dev=True).mountinfo()
    assert b" rw,relatime " in line


@pytest.mark.parametrize("option", ["suid", "dev"])
def test_a_user_does_not(mount: Mount, option: str) -> None:
    with pytest.raises(RefusedError, match="only root") as caught:
        mount(uid=USER, **{option: True})
    assert caught.value.kind == "MountFailed"


@both
def test_read_only_noexec_and_max_read(mount: Mount, uid: int) -> None:
    mounted = mount(uid=uid, read_only=True, noexec=True, max_read=8192, default_permissions=False)
    _, line = mounted.mountinfo()
    assert b" ro,nosuid,nodev,noexec,relatime " in line
    assert b"max_read=8192" in line
    assert b"default_permissions" not in line


def test_with_allow_other_others_see_it(mount: Mount) -> None:
    mounted = mount(allow_other=True)
    os.chmod(mounted.mountpoint.parent, 0o711)
    assert as_user((mounted.mountpoint / "hello").read_text) == "hello"


def test_without_allow_other_they_do_not(mount: Mount) -> None:
    mounted = mount(uid=USER)
    with pytest.raises(PermissionError):
        (mounted.mountpoint / "hello").read_text()


def test_allow_other_needs_user_allow_other(mount: Mount) -> None:
    with pytest.raises(RefusedError, match="allow_other only allowed") as caught:
        mount(uid=USER, allow_other=True, private='mount --bind /dev/null /etc/fuse.conf; exec "$@"')
    assert caught.value.kind == "MountFailed"
    assert "user_allow_other into /etc/fuse.conf" in caught.value.hint


def test_a_user_with_user_allow_other_may(mount: Mount) -> None:
    write = "mount -t tmpfs none /mnt; echo user_allow_other > /mnt/conf;"
    allow = write + 'mount --bind /mnt/conf /etc/fuse.conf; exec "$@"'
    _, line = mount(uid=USER, allow_other=True, private=allow).mountinfo()
    assert b",allow_other" in line


@both
def test_no_dev_fuse_says_what_to_do(mount: Mount, uid: int) -> None:
    with pytest.raises(RefusedError) as caught:
        mount(
            uid=uid,
            private='mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; exec "$@"',
        )
    assert caught.value.kind == "MountFailed"
    assert "modprobe fuse" in caught.value.hint


def test_no_fusermount3_says_what_to_install(mount: Mount) -> None:
    with pytest.raises(RefusedError, match="not installed") as caught:
        mount(uid=USER, environment={"PATH": "/nonexistent"})
    assert "fuse3" in caught.value.hint


def test_fusermount3_without_setuid_is_named(mount: Mount) -> None:
    copy = (
        "mount -t tmpfs none /mnt; cp /usr/bin/fusermount3 /mnt; chmod 755 /mnt/fusermount3;"
        'mount --bind /mnt/fusermount3 /usr/bin/fusermount3; exec "$@"'
    )
    with pytest.raises(RefusedError, match="not permitted") as caught:
        mount(uid=USER, private=copy)
    assert "setuid root" in caught.value.hint


def test_without_cap_sys_admin_root_is_told(mount: Mount) -> None:
    with pytest.raises(RefusedError, match="not allowed to mount") as caught:
        mount(private='exec setpriv --bounding-set=-sys_admin "$@"')
    assert "CAP_SYS_ADMIN" in caught.value.hint


def test_a_user_without_a_name_is_told(mount: Mount) -> None:
    with pytest.raises(RefusedError, match="username") as caught:
        mount(uid=NAMELESS)
    assert "user database" in caught.value.hint


@both
def test_a_missing_mount_point_is_refused(mount: Mount, uid: int) -> None:
    with pytest.raises(RefusedError, match="No such file") as caught:
        mount(uid=uid, mountpoint=Path("/nonexistent/mount"))
    assert caught.value.kind == "MountFailed"


def test_a_user_needs_a_mount_point_of_his_own(mount: Mount) -> None:
    with pytest.raises(RefusedError, match="no write access") as caught:
        mount(uid=USER, mountpoint=Path("/mnt"))
    assert "may write" in caught.value.hint


# -- The INIT answer -------------------------------------------------------------------------------


@both
def test_what_was_negotiated_is_told(mount: Mount, uid: int) -> None:
    found = mount(uid=uid)("negotiated")
    assert InitFlag(found["refused"]) == NO_FLAGS
    assert InitFlag(found["flags"]) & InitFlag.HANDLE_KILLPRIV_V2
    assert InitFlag(found["flags"]) & InitFlag.WRITEBACK_CACHE
    assert (found["max_write"], found["max_background"]) == (1 << 20, 64)


def test_the_kernel_takes_max_background(mount: Mount) -> None:
    mounted = mount(max_background=100, private=SHOW_FUSECTL)
    assert mounted("fusectl", name="max_background") == {"text": "100\n"}
    assert mounted("fusectl", name="congestion_threshold") == {"text": "75\n"}


@pytest.mark.parametrize("wished", [True, False])
def test_handle_killpriv_saves_a_request_per_write(mount: Mount, wished: bool) -> None:
    mounted = mount(flags=InitFlag.HANDLE_KILLPRIV_V2 if wished else NO_FLAGS)
    with open(mounted.mountpoint / "file", "wb", buffering=0) as file:
        file.write(bytes(512))
        first = mounted.requests("getxattr")
        for _ in range(20):
            file.write(bytes(512))
        assert mounted.requests("getxattr") - first == (0 if wished else 20)


@pytest.mark.parametrize("wished", [True, False])
def test_direct_io_allows_shared_mappings(mount: Mount, wished: bool) -> None:
    mounted = mount(flags=InitFlag.DIRECT_IO_ALLOW_MMAP if wished else NO_FLAGS)
    with open(mounted.mountpoint / "direct", "r+b", buffering=0) as file:
        if not wished:
            with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
                mmap.mmap(file.fileno(), 4096)
            return
        with mmap.mmap(file.fileno(), 4096) as mapping:
            mapping[:5] = b"mmap!"
            mapping.flush()
        assert os.pread(file.fileno(), 5, 0) == b"mmap!"


@pytest.mark.parametrize(("flags", "mode"), [(NO_FLAGS, 0o755), (InitFlag.DONT_MASK, 0o777)])
def test_dont_mask_brings_the_unmasked_mode(mount: Mount, flags: InitFlag, mode: int) -> None:
    mounted = mount(flags=flags)
    before = os.umask(0o022)
    try:
        with pytest.raises(OSError, match="Read-only"):
            (mounted.mountpoint / "new").mkdir(0o777)
    finally:
        os.umask(before)
    assert mounted("requests")["created"] == [[mode, 0o022]]


@pytest.mark.parametrize(("flags", "count"), [(NO_FLAGS, 3), (InitFlag.CACHE_SYMLINKS, 1)])
def test_cached_symlinks_are_asked_for_once(mount: Mount, flags: InitFlag, count: int) -> None:
    mounted = mount(flags=flags)
    for _ in range(3):
        assert os.readlink(mounted.mountpoint / "link") == "hello"
    assert mounted.requests("readlink") == count


@both
def test_a_write_of_1_mib_is_one_request(mount: Mount, uid: int) -> None:
    mounted = mount(uid=uid)

    def write() -> None:
        pages = mmap.mmap(-1, 1 << 20)  # aligned: a buffer on 257 pages would make two requests
        with open(mounted.mountpoint / "direct", "r+b", buffering=0) as file:
            file.write(pages)

    write() if uid == 0 else as_user(write)
    assert mounted("requests")["requests"]["largest write"] == 1 << 20


# -- What the kernel remembers ---------------------------------------------------------------------


@both
def test_an_invalidated_inode_is_read_again(mount: Mount, uid: int) -> None:
    mounted = mount(uid=uid)
    assert mounted("look", name="hello") == {"text": "hello"}
    mounted("set_hello", text="world")
    assert mounted("look", name="hello") == {"text": "hello"}, "long timeouts and keep_cache"
    assert mounted("invalidate_inode", inode=HELLO) == {"known": True}
    assert mounted("look", name="hello") == {"text": "world"}


def test_attributes_alone_leave_the_pages(mount: Mount) -> None:
    mounted = mount()
    mounted("look", name="hello")
    mounted("set_hello", text="world")
    asked = mounted.requests("getattr")
    assert mounted("invalidate_inode", inode=HELLO, attr_only=True) == {"known": True}
    assert mounted("look", name="hello") == {"text": "hello"}
    assert mounted.requests("getattr") == asked + 1


def test_dirty_pages_are_written_back_first(mount: Mount) -> None:
    mounted = mount()
    with open(mounted.mountpoint / "file", "wb", buffering=0) as file:
        file.write(b"dirty")
        assert mounted.requests("write") == 0
        assert mounted("invalidate_inode", inode=FILE) == {"known": True}
        assert mounted.requests("write") == 1


def test_an_invalidated_name_is_looked_up_again(mount: Mount) -> None:
    mounted = mount()
    for _ in range(2):
        os.stat(mounted.mountpoint / "hello")
    assert mounted.requests("lookup") == 1
    assert mounted("invalidate_entry", parent=1, name="hello") == {"known": True}
    os.stat(mounted.mountpoint / "hello")
    assert mounted.requests("lookup") == 2


def test_what_the_kernel_does_not_know_is_no_error(mount: Mount) -> None:
    mounted = mount()
    assert mounted("invalidate_inode", inode=4711) == {"known": False}
    assert mounted("invalidate_entry", parent=1, name="never seen") == {"known": False}
    assert mounted("invalidate_entry", parent=4711, name="hello") == {"known": False}


# -- The loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("poll_window", [0.0, 200e-6], ids=["waiting", "polling"])
@pytest.mark.parametrize(("readers", "max_tasks"), [(110, 120), (3, 3)])
def test_as_many_requests_are_handled_at_once_as_max_tasks(
    mount: Mount, readers: int, max_tasks: int, poll_window: float
) -> None:
    mounted = mount(max_tasks=max_tasks, poll_window=poll_window, timeout=0.0)
    with ThreadPoolExecutor(readers + 1) as pool:
        descriptor = os.open(mounted.mountpoint / "slow", os.O_RDONLY)
        reading = [pool.submit(os.pread, descriptor, 4, 0) for _ in range(readers)]
        mounted("await_slow_readers", count=readers)
        one_more = pool.submit(os.stat, mounted.mountpoint)
        if readers < max_tasks:
            one_more.result(SECONDS)
        mounted("release_slow")
        assert {each.result(SECONDS) for each in reading} == {b"slow"}
        one_more.result(SECONDS)
        os.close(descriptor)


@both
def test_a_request_that_vanishes_does_not_stop_the_loop(mount: Mount, uid: int) -> None:
    mounted = mount(uid=uid, timeout=0.0)
    for _ in range(3):
        mounted("pretend_readable")
        assert mounted("look", name="hello") == {"text": "hello"}
    assert mounted("requests")


def test_an_answer_that_the_kernel_does_not_take_is_an_error_of_that_request_alone(mount: Mount) -> None:
    mounted = mount(timeout=0.0)
    mounted("set_target", size=4095)
    assert len(os.readlink(mounted.mountpoint / "link")) == 4095
    mounted("set_target", size=5000)
    with pytest.raises(OSError, match="Input/output error"):
        os.readlink(mounted.mountpoint / "link")
    for number in (0, -5, 512, 5000):  # no errno: nobody would ever answer it again
        with pytest.raises(OSError, match="Input/output error"):
            os.mkdir(mounted.mountpoint / str(number))
    assert (mounted.mountpoint / "hello").read_text() == "hello"


def test_callers_that_are_killed_do_no_harm(mount: Mount) -> None:
    mounted = mount(timeout=0.0)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        child = os.fork()
        if not child:
            while True:
                os.stat(mounted.mountpoint / "hello")
        os.stat(mounted.mountpoint / "hello")
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert mounted("requests")


def test_timers_run_under_full_load(mount: Mount) -> None:
    mounted = mount(timeout=0.0)
    children = []
    try:
        for _ in range(3):
            child = os.fork()
            if not child:
                while True:
                    os.stat(mounted.mountpoint / "hello")
            children.append(child)
        assert mounted("ticks", seconds=1.0)["late"] < 0.1
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


@pytest.mark.parametrize("poll_window", [0.0, 200e-6], ids=["waiting", "polling"])
@pytest.mark.alone
def test_an_idle_mount_uses_no_processor(mount: Mount, poll_window: float) -> None:
    mounted = mount(poll_window=poll_window)
    os.statvfs(mounted.mountpoint)
    while not mounted.sleeps():
        os.sched_yield()  # what the request itself costs is over
    seconds = 2.0
    before = mounted.cpu_seconds()
    time.sleep(seconds)  # idling is what is measured
    assert mounted.cpu_seconds() - before < 0.001 * seconds


@pytest.mark.parametrize("busy", [True, False])
def test_stop_ends_serving(mount: Mount, busy: bool) -> None:
    mounted = mount(poll_window=10.0 if busy else 0.0)
    os.statvfs(mounted.mountpoint)
    mounted("stop")
    assert mounted.end() == 0
    assert is_dead_mount(mounted.mountpoint)


# -- The end ---------------------------------------------------------------------------------------


@both
def test_unmount_ends_it_and_again_says_so(mount: Mount, uid: int) -> None:
    mounted = mount(uid=uid)
    assert mounted("look", name="hello")
    assert mounted("unmount") == {"was_mounted": True}
    assert mounted.end() == 0
    assert mounted_at(os.fsencode(mounted.mountpoint)) is None


@both
def test_unmount_refuses_while_files_are_open_and_lazy_does_not(mount: Mount, uid: int) -> None:
    mounted = mount(uid=uid, timeout=0.0)
    child = os.fork()
    if not child:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.chdir(mounted.mountpoint)
        os.execvp("sleep", ["sleep", "60"])
    try:
        while os.readlink(f"/proc/{child}/cwd") != str(mounted.mountpoint):
            os.sched_yield()
        with pytest.raises(RefusedError) as caught:
            mounted("unmount")
        assert caught.value.kind == "Busy"
        assert mounted("unmount", lazy=True) == {"was_mounted": True}
        assert mounted("unmount", lazy=True) == {"was_mounted": False}
        assert mounted("unmount") == {"was_mounted": False}
        assert mounted_at(os.fsencode(mounted.mountpoint)) is None
        subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted.mountpoint)], check=True)
        assert mounted("unmount") == {"was_mounted": False}
        subprocess.run(["umount", str(mounted.mountpoint)], check=True)  # it was spared
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert mounted.end() == 0


def test_unmount_spares_what_is_mounted_over_it(mount: Mount) -> None:
    mounted = mount()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted.mountpoint)], check=True)
    try:
        with pytest.raises(RefusedError, match="mounted over") as caught:
            mounted("unmount")
        assert caught.value.kind == "Busy"
    finally:
        subprocess.run(["umount", str(mounted.mountpoint)], check=True)
    assert mounted("unmount") == {"was_mounted": True}


@pytest.mark.parametrize("private", ["", HIDE_FUSECTL, SHOW_FUSECTL], ids=["as it is", "without", "with fusectl"])
def test_abort_by_root(mount: Mount, private: str) -> None:
    mounted = mount(private=private)
    mounted("look", name="hello")
    mounted("abort")
    assert mounted.end() == 0


def test_abort_by_a_user_needs_fusectl(mount: Mount) -> None:
    mounted = mount(uid=USER, private=SHOW_FUSECTL)
    mounted("abort")
    assert mounted.end() == 0


def test_without_it_he_is_told(mount: Mount) -> None:
    mounted = mount(uid=USER, private=HIDE_FUSECTL)
    with pytest.raises(RefusedError, match="cannot abort") as caught:
        mounted("abort")
    assert "mount -t fusectl" in caught.value.hint
    assert mounted("look", name="hello") == {"text": "hello"}


@pytest.mark.parametrize(
    ("uid", "private"),
    [(0, HIDE_FUSECTL), (0, SHOW_FUSECTL), (USER, SHOW_FUSECTL)],
    ids=["force", "root", "user"],
)
def test_the_cache_outlives_abort_but_not_an_invalidation(mount: Mount, uid: int, private: str) -> None:
    mounted = mount(uid=uid, private=private)
    mounted("look", name="hello")  # its close tells the kernel that there is no flush
    found = mounted("abort_then_invalidate", name="hello", inode=HELLO)
    assert found == {"after_abort": "hello", "known": True, "after_invalidation": errno.ENOTCONN}
    assert mounted.end() == 0


@both
def test_the_mount_of_a_killed_daemon_is_dead_and_can_be_cleared(mount: Mount, uid: int) -> None:
    mounted = mount(uid=uid)
    mounted("look", name="hello")  # attributes are cached for long: they must not make it look alive
    found = []
    for after in ("serving", "killed", "cleared"):
        if after == "killed":
            mounted.process.kill()
            mounted.process.wait()

        def look_and_clear() -> list[bool]:
            return [is_dead_mount(mounted.mountpoint), clear_dead_mount(mounted.mountpoint)]

        found.append(look_and_clear() if uid == 0 else as_user(look_and_clear))
    assert found == [[False, False], [True, True], [False, False]]
    assert mounted_at(os.fsencode(mounted.mountpoint)) is None


def test_what_is_no_mount_is_not_dead(tmp_path: Path) -> None:
    assert not is_dead_mount(tmp_path)
    assert not is_dead_mount(tmp_path / "missing")
    assert not clear_dead_mount(Path("/"))
