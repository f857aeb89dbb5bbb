"""`cmkfs mount -o remount,…`: what can change while a vault is mounted, and a clear word about what cannot."""

import os
from collections.abc import Sequence
from pathlib import Path

from cmkfs.cli import mounts
from cmkfs.control import client
from cmkfs.control.protocol import Fields
from cmkfs.fs import remounting
from cmkfs.home import Home

_OF_THE_KERNEL = ("user_id=", "group_id=", "rootmode=", "fsname=", "subtype=", "max_read=")
"""What mount(8) reads in the mount table and hands back."""


def asked_for(option_texts: Sequence[str]) -> bool:
    """True if one of the words is `remount`."""
    return "remount" in _words(option_texts)


def remount(home: Home, mountpoint: Path, option_texts: Sequence[str]) -> Fields:
    """Change the options of a mount. Raises NotFound, UsageError (what cannot change), Busy, MountFailed."""
    entry = mounts.live(home, mountpoint)
    where = mounts.resolved(mountpoint)
    words = [word for word in _words(option_texts) if word != "remount" and not word.startswith(_OF_THE_KERNEL)]
    known = [word for word in words if word in remounting.WORDS]
    flags = remounting.flags_after(os.statvfs(where).f_flag, known)
    client.ask(entry, "remount", words=words)
    remounting.remount(os.fsencode(where), flags)
    noatime, nodiratime = remounting.keeps_access_times(flags)
    client.ask(entry, "remount", words=[], noatime=noatime, nodiratime=nodiratime)
    return {"mountpoint": where, "read_only": bool(os.statvfs(where).f_flag & os.ST_RDONLY)}


def _words(option_texts: Sequence[str]) -> list[str]:
    return [word for text in option_texts for word in text.split(",") if word]
