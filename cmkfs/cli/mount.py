"""`cmkfs mount`: in the background, or with `-f` as the daemon itself."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click

from cmkfs import config
from cmkfs.cli import daemon, preflight, remount
from cmkfs.cli.options import PATH, Command, json_option
from cmkfs.cli.output import facts, note, said
from cmkfs.cli.policy import NO_POLICY
from cmkfs.cli.status import recovery_lines
from cmkfs.config import Config, MountOptions
from cmkfs.control.protocol import Fields
from cmkfs.control.registry import socket_path
from cmkfs.errors import CmkfsError, MountFailed
from cmkfs.home import Home, private_directory, private_tree
from cmkfs.keys.token_start import Started


@click.command(
    cls=Command,
    epilog="Example: cmkfs mount ~/vault ~/clear -o allow_other; in fstab: VAULT MOUNTPOINT fuse.cmkfs noauto",
)
@click.argument("vault", type=PATH)
@click.argument("mountpoint", type=PATH)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("--break-lock", is_flag=True, help="Take over a vault whose owner died on another host.")
@click.option(
    "-o",
    "option_texts",
    metavar="OPT,…",
    multiple=True,
    help="ro, rw, allow_other, noxattr, acl, suid, dev, idle=MIN, revocation_bound=SEC, outage_grace=SEC,"
    " and the usual ones of FUSE and fstab; remount.",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--pin-fd", type=int, hidden=True)
@json_option
def mount(
    vault: Path,
    mountpoint: Path,
    foreground: bool,
    break_lock: bool,
    option_texts: tuple[str, ...],
    ready_fd: int | None,
    pin_fd: int | None,
    as_json: bool,
) -> int:
    """Mount VAULT at MOUNTPOINT; returns once files can be used.

    Everything that can fail fails before it goes to the background.
    """
    home = Home.from_environment()
    if remount.asked_for(option_texts):
        report = remount.remount(home, mountpoint, option_texts)
        access = "read-only" if report["read_only"] else "to be written"
        facts(report, [f"remounted {report['mountpoint']}, {access}"], as_json=as_json)
        return 0
    settings = config.load(home.config_file)
    order = _Order(home, settings, config.parse_options(option_texts, defaults=settings.mount), break_lock)
    if ready_fd is not None:
        return _as_daemon(order, vault, mountpoint, ready_fd, pin_fd)
    real_vault, where = preflight.places(home, vault, mountpoint)
    preflight.fuse(order.options)
    if foreground:
        return _serve(order, real_vault, where, None, lambda report: _say(order, report, as_json))
    arguments = [str(real_vault), str(where), *(word for text in option_texts for word in ("-o", text))]
    arguments += ["--break-lock"] * break_lock + ["--verbose"] * ("--verbose" in sys.argv)
    report = daemon.start(arguments, pin=_pin_of_caller(order), log=_log(home, where))
    _say(order, report, as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Order:
    """What is wanted, beside the two places."""

    home: Home
    settings: Config
    options: MountOptions
    break_lock: bool


def _as_daemon(order: _Order, vault: Path, mountpoint: Path, ready_fd: int, pin_fd: int | None) -> int:
    """The other end of `daemon.start`."""
    pipe = daemon.ReadyPipe(ready_fd)
    try:
        return _serve(order, vault, mountpoint, _pin_from(pin_fd), pipe.ready)
    except CmkfsError as error:
        pipe.failed(error)
        raise
    except OSError as error:
        pipe.failed(MountFailed(said(error), hint=""))
        raise


def _serve(order: _Order, vault: Path, mountpoint: Path, pin: str | None, ready: Callable[[Fields], None]) -> int:
    started = Started()
    try:
        return _serve_with(order, vault, mountpoint, pin, started, ready)
    finally:
        started.end(wait=0.0)  # what had it in use has waited for it


def _serve_with(
    order: _Order, vault: Path, mountpoint: Path, pin: str | None, started: Started, ready: Callable[[Fields], None]
) -> int:
    from cmkfs.mount import MountSpec, serve

    logging.basicConfig(
        level=logging.INFO if "--verbose" in sys.argv else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    spec = MountSpec(
        vault=vault,
        mountpoint=mountpoint,
        home=order.home,
        config=order.settings,
        options=order.options,
        break_lock=order.break_lock,
        pin=pin,
    )
    return serve(spec, started, ready)


def _pin_of_caller(order: _Order) -> str | None:
    """The PIN, if it comes from where only this process can read it: terminal, environment, command."""
    token = order.settings.token.of_mounts
    source = token.pin_source
    if source is None or not source.needs_the_caller:
        return None
    from cmkfs.keys.access import TokenAccess

    return TokenAccess.of(token, order.home).read_pin()


def _pin_from(descriptor: int | None) -> str | None:
    if descriptor is None:
        return None
    with open(descriptor, "rb") as pipe:
        return pipe.read().decode()


def _log(home: Home, mountpoint: Path) -> Path:
    private_tree(home.state)
    return private_directory(home.log_dir) / f"{socket_path(home, str(mountpoint)).stem}.log"


def _say(order: _Order, report: Fields, as_json: bool) -> None:
    """Tell that files can be used, what the recovery did, and who can use them."""
    warnings = cast(list[str], report.get("warnings") or [])
    lines = [f"mounted {report.get('vault')} at {report.get('mountpoint')}", *recovery_lines(report)]
    shut = sorted(set(cast(list[str], report.get("shut") or [])))
    lines += [f"  not served: zones under CMK {cmk}" for cmk in shut]
    facts(report, [*lines, *(f"  warning: {warning}" for warning in warnings)], as_json=as_json)
    sys.stdout.flush()
    if order.options.allow_other and not report.get("has_policy"):
        note(f"the CMK has no policy; {NO_POLICY}; try: cmkfs policy set NAME FILE")
