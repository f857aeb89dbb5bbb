"""Copies of the embedded token's files, since SoftHSM rewrites them in place: each login, and each change of a key.

It cuts the file to nothing and writes it again (`ftruncate`, `write`, no fsync). A process that is killed between the
two, or a power cut, leaves an empty `token.object`, and with it every key of the token is lost. So beside each object
lies its last whole state, `….object.whole`, which takes the place of an empty one. What holds for the objects holds
for the copies: they are encrypted under the PIN, and a key that is destroyed is destroyed in both.

Only under the store's exclusive lock (`keys.softhsm_lock`).
"""

import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

TOKENS: Final = "tokens"
_WHOLE: Final = ".whole"
_GENERATION: Final = 8
"""Bytes at the beginning that count the writes: SoftHSM only compares them."""


def heal(token_dir: Path) -> None:
    """Put back what is empty. Raises OSError."""
    for copy in token_dir.glob(f"{TOKENS}/*/*.object{_WHOLE}"):
        path = copy.with_suffix("")
        if path.exists() and not path.stat().st_size:
            _write(path, copy.read_bytes())
            log.warning("%s was left empty by a login or a change that did not end; its copy takes its place", path)


def keep(token_dir: Path) -> None:
    """Copy what has changed, and forget what is gone. Raises OSError."""
    for copy in token_dir.glob(f"{TOKENS}/*/*.object{_WHOLE}"):
        if not copy.with_suffix("").exists():
            copy.unlink()
    for path in token_dir.glob(f"{TOKENS}/*/*.object"):
        data, copy = path.read_bytes(), path.with_name(path.name + _WHOLE)
        known = copy.read_bytes() if copy.exists() else b""
        if data and data[_GENERATION:] != known[_GENERATION:]:
            new = copy.with_name(copy.name + ".new")
            _write(new, data)
            new.replace(copy)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
