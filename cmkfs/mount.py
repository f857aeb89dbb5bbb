"""The composition root: from a vault, a token and options to a served mount, and back down in order.

`serve` blocks until the mount has ended. Everything that can fail fails before it calls `ready`.
"""

import gc
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from cmkfs.answers import ControlAnswers
from cmkfs.auditing import MountAudit
from cmkfs.config import Config, MountOptions
from cmkfs.control.registry import MountRecord
from cmkfs.control.server import ControlServer
from cmkfs.errors import Busy, CmkfsError, Disabled, MountFailed, UsageError
from cmkfs.format.vault import VaultFile
from cmkfs.fs.backing import Backing
from cmkfs.fs.fusedev import DeviceOptions, FuseDevice, MountRequest, open_device
from cmkfs.fs.ownership import Ownership
from cmkfs.fs.vaultdir import read_vault_file, read_zone_record
from cmkfs.fuse.init import InitFlag, Wish
from cmkfs.home import Home
from cmkfs.keys.access import TokenAccess
from cmkfs.keys.keyring import Keyring
from cmkfs.keys.memory import keep_heap, protect_memory
from cmkfs.keys.policies import Policies
from cmkfs.keys.provider import CmkState
from cmkfs.keys.token_client import TokenClient
from cmkfs.keys.token_start import Started
from cmkfs.keys.token_team import TokenTeam
from cmkfs.keys.zone import Zone
from cmkfs.mounted import Mounted
from cmkfs.privileges import no_new_privileges

log = logging.getLogger(__name__)

MAX_TASKS = 512
"""Requests handled at once: 120 that wait for a token must not stall a mount."""


@dataclass(frozen=True, slots=True)
class MountSpec:
    """What to mount where, and how. `pin` None: read it from the configured source."""

    vault: Path
    mountpoint: Path
    home: Home
    config: Config
    options: MountOptions
    break_lock: bool
    pin: str | None


Ready = Callable[[dict[str, object]], None]
Task = Callable[[], Awaitable[None]]


def serve(spec: MountSpec, started: Started, ready: Ready) -> int:
    """Mount, call `ready` with a report once files can be used, and serve until unmounted; `started` for the token.

    0 if everything was stored, 1 if not. Raises CmkfsError for all that fails before `ready`.
    """
    if spec.options.acl and spec.options.noxattr:
        raise UsageError("ACLs are extended attributes: -o acl and -o noxattr exclude each other")
    vault = read_vault_file(spec.vault)
    protect_memory()
    keep_heap()
    _allow_descriptors()
    os.umask(0)
    spec = _give_up_privileges(spec)
    token = TokenTeam(spec.config.token.processes, started)
    try:
        backing = _open_backing(spec)
        try:
            ownership = Ownership(backing, spec.vault)
            if not backing.read_only:
                ownership.take(spec.mountpoint, break_lock=spec.break_lock)
            clean = False
            try:
                clean = trio.run(_serve, spec, vault, backing, token, ownership, ready)
            except BaseExceptionGroup as group:
                raise _only(group) from group
            finally:
                ownership.release(clean=clean)
        finally:
            backing.close()
    finally:
        token.close(wait=1.0)
    return 0 if clean else 1


def _give_up_privileges(spec: MountSpec) -> MountSpec:
    """The PIN first: the command that it may come from is nobody's business, and may need what is given up.

    Who is not root mounts and unmounts through fusermount3, which is set-user-id.
    """
    if spec.pin is None:
        spec = replace(spec, pin=TokenAccess.of(spec.config.token.of_mounts, spec.home).read_pin())
    if os.geteuid() == 0:
        no_new_privileges()
    return spec


def _only(error: BaseException) -> BaseException:
    """The one error that a nursery wrapped; the group itself if there are several."""
    if not isinstance(error, BaseExceptionGroup) or len(error.exceptions) > 1:
        return error
    return _only(error.exceptions[0])


def _open_backing(spec: MountSpec) -> Backing:
    read_only_below = bool(os.statvfs(spec.vault).f_flag & os.ST_RDONLY)
    if read_only_below and not spec.options.read_only:
        raise MountFailed(
            f"{spec.vault} lies on a read-only filesystem",
            hint=f"cmkfs mount -o ro {spec.vault} {spec.mountpoint}",
        )
    backing = Backing(spec.vault, read_only=spec.options.read_only)
    words = spec.options.fuse
    backing.noatime = "noatime" in words
    backing.nodiratime = backing.noatime or "nodiratime" in words
    return backing


def _allow_descriptors() -> None:
    """As many as the limit lets us have, and as root as the kernel does: all programs' open files need one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (PermissionError, ValueError):  # ValueError is what Python makes of EPERM for a raised hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    spec: MountSpec, vault: VaultFile, backing: Backing, token: TokenTeam, ownership: Ownership, ready: Ready
) -> bool:
    """All that needs the event loop. True if the vault was left settled and closed."""
    deadline = spec.config.token.deadline
    await _open_token(spec, token, deadline)
    client = TokenClient(token, deadline)
    audit = MountAudit(spec.home, spec.config.audit, str(spec.mountpoint), client)
    await audit.begin()
    try:
        try:
            mounted = await _open_vault(spec, vault, backing, client, audit)
        except (CmkfsError, OSError) as error:
            _record_failure(spec, audit, error)
            raise
        return await _until_unmounted(spec, mounted, ownership, audit, [audit.run, token.help], ready)
    finally:
        with trio.CancelScope(shield=True):
            await audit.close()


def _record_failure(spec: MountSpec, audit: MountAudit, error: BaseException) -> None:
    audit.recorder.changed("mount", outcome="failed", reason=f"{spec.vault}: {error}", caller=audit.process)


async def _open_vault(
    spec: MountSpec, vault: VaultFile, backing: Backing, client: TokenClient, audit: MountAudit
) -> Mounted:
    """The vault with its root zone unlocked, recovered if need be, in a session of ours."""
    record = read_zone_record(backing.root_fd)
    cmk = await client.describe(record.recipient.version.cmk_id)
    if cmk.state is not CmkState.ENABLED:
        raise Disabled(f"CMK {cmk.name} is {cmk.state}", hint=f"cmkfs cmk enable {cmk.name}")
    zone = Zone(record.zone_id, record, cmk.name)
    keyring = Keyring(vault, client, Policies(os.geteuid()))
    keyring.audit = audit.recorder
    keyring.add_zone(zone)
    await keyring.unlock(zone)
    mounted = Mounted(spec.vault, spec.mountpoint, backing, keyring, zone, spec.options)
    await mounted.recover_and_open()
    return mounted


async def _until_unmounted(
    spec: MountSpec,
    mounted: Mounted,
    ownership: Ownership,
    audit: MountAudit,
    background: list[Task],
    ready: Ready,
) -> bool:
    """Mount, serve, unmount, store, and tell who waits for it. True if everything was stored."""
    answers = ControlAnswers(mounted, audit)
    server = ControlServer(spec.home, _record(spec, mounted), answers.handlers())
    mounted.on_zones_changed = lambda: server.update(_record(spec, mounted))
    device: FuseDevice | None = None
    serving = False

    def served(report: dict[str, object]) -> None:
        nonlocal serving
        serving = True
        audit.recorder.changed("mount", reason=str(spec.vault), caller=audit.process, zone=mounted.root_zone)
        ready(report)

    async with trio.open_nursery() as clients:
        try:
            device = open_device(spec.mountpoint, _mount_request(spec), _device_options(spec))
            mounted.use(device)
            await mounted.begin_guarding()
            await mounted.begin_watching()
            server.open()
            await clients.start(server.run)
            await _run(mounted, device, background, served)
        except BaseException as error:  # from within a nursery, so a group perhaps
            if not serving:
                _record_failure(spec, audit, _only(error))
            raise
        finally:
            with trio.CancelScope(shield=True):
                if device is not None:
                    await _leave(mounted, device)
                answers.ending = True
                result = await mounted.close()
                clean = not result["unsaved"] and not result["error"]
                if serving:
                    outcome = "done" if clean else "failed"
                    audit.recorder.changed("umount", outcome=outcome, zone=mounted.root_zone)
                await audit.close()
                if unwritten := audit.recorder.waiting + audit.recorder.lost:
                    result["error"] = result["error"] or f"{unwritten} audit records could not be written, and are lost"
                ownership.release(clean=clean)  # before anybody is told: they may mount again at once
                await server.finish(result)
    return clean


async def _open_token(spec: MountSpec, token: TokenTeam, deadline: float) -> None:
    access = TokenAccess.of(spec.config.token.of_mounts, spec.home)
    await token.open(access, spec.pin or "", deadline)


def _device_options(spec: MountSpec) -> DeviceOptions:
    if not spec.options.acl:
        return DeviceOptions()
    # A default ACL takes the place of the umask: so the daemon applies it.
    return DeviceOptions(wish=Wish(flags=Wish().flags | InitFlag.DONT_MASK | InitFlag.POSIX_ACL))


def _mount_request(spec: MountSpec) -> MountRequest:
    words = spec.options.fuse
    max_read = next((int(word.partition("=")[2]) for word in words if word.startswith("max_read=")), 0)
    source = next((word.partition("=")[2] for word in words if word.startswith("fsname=")), str(spec.vault))
    return MountRequest(
        source=os.fsencode(source),
        read_only=spec.options.read_only,
        allow_other=spec.options.allow_other,
        suid=spec.options.suid,
        dev=spec.options.dev,
        noexec="noexec" in words,
        noatime="noatime" in words,
        nodiratime="nodiratime" in words,
        max_read=max_read,
    )


def _record(spec: MountSpec, mounted: Mounted) -> MountRecord:
    return MountRecord(
        mountpoint=str(spec.mountpoint),
        vault=str(spec.vault),
        pid=os.getpid(),
        cmks=mounted.cmks,
        revocation_bound=spec.options.revocation_bound,
    )


async def _run(mounted: Mounted, device: FuseDevice, background: list[Task], ready: Ready) -> None:
    """Serve until the mount ends; then the background ends too."""
    device.attach(mounted.operations)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve_requests, device, nursery.cancel_scope)
        nursery.start_soon(_unmount_on_signal, mounted, device)
        nursery.start_soon(_lock_on_signal, mounted)
        await device.serving.wait()
        mounted.start_soon = nursery.start_soon
        for task in [*background, *mounted.background()]:
            nursery.start_soon(task)
        _spare_the_collector()
        ready(mounted.ready_report())


def _spare_the_collector() -> None:
    """What lives as long as the mount is not looked at again and again, and what a request leaves behind is no cycle.

    By default the collector runs every 700 objects: some 20 files that a program creates.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _serve_requests(device: FuseDevice, scope: trio.CancelScope) -> None:
    await device.serve(max_tasks=MAX_TASKS)
    scope.cancel()


async def _unmount_on_signal(mounted: Mounted, device: FuseDevice) -> None:
    """SIGTERM and SIGINT are `umount`; a second one does not wait for programs that still use the mount."""
    lazy = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            try:
                await trio.to_thread.run_sync(partial(device.unmount, lazy=lazy))
            except (Busy, MountFailed) as error:
                log.warning("not unmounted: %s; a second signal detaches it all the same", error)
                lazy = True
                try:
                    await mounted.settler.settle_all()
                except OSError as failure:
                    log.error("what was written could not be made durable: %s", failure)


async def _lock_on_signal(mounted: Mounted) -> None:
    """SIGUSR1 is `lock`: for who can send a signal and nothing else, such as a screen locker."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            await mounted.lock_all("a signal (SIGUSR1) locked the zone")


async def _leave(mounted: Mounted, device: FuseDevice) -> None:
    """Whatever ended the service: nothing stays readable, and no dead mount point stays behind."""
    with trio.CancelScope(shield=True):
        in_order = device.cut and not device.mounted
        await mounted.locks.finish()
        # Cut first: nothing may wait for a daemon that serves no more while the mount is being taken down.
        try:
            await trio.to_thread.run_sync(device.abort)
        except CmkfsError as error:
            log.debug("the connection is not cut by hand: %s", error)
        device.close()
        await mounted.end_guarding(in_order=in_order)
        try:
            await trio.to_thread.run_sync(partial(device.unmount, lazy=True))
        except CmkfsError as error:
            log.warning("the mount point stays: %s", error)
