"""One module, one token, one login: what of PKCS#11 belongs to the process rather than to a key.

Facts that shape it (measured with python-pkcs11 0.10.1 and SoftHSM 2.6.1):

- python-pkcs11 initialises a module as single-threaded, and SoftHSM crashes when two threads use it.
  Every call of a `TokenSession` must come from the thread and process that made it; it checks.
- A module is initialised, and a user logged in, once per process. So one session per module and
  process, which holds the login for life; the second one is refused.
- A wrong PIN is never tried again: tokens lock themselves after a few.
- A removed token lets sessions be opened and answers searches with nothing. `require_alive` asks for
  the token's own description, which fails then.
- SoftHSM reads SOFTHSM2_CONF in C_Initialize.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import pkcs11
from pkcs11 import Attribute, TokenFlag
from pkcs11._pkcs11 import SearchIter  # type: ignore[attr-defined]  # the stubs leave it out

from cmkfs.errors import Busy, PinRefused, TokenUnavailable
from cmkfs.keys.pkcs11_errors import GONE, translate, translated
from cmkfs.keys.provider import TokenInfo
from cmkfs.keys.softhsm_lock import StoreLock

if TYPE_CHECKING:
    from pkcs11 import _pkcs11

T = TypeVar("T")

_CONF_VARIABLE: Final = "SOFTHSM2_CONF"
_SEARCH_TRIES: Final = 3

_claimed: set[str] = set()
_claimed_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """Where a token is. Without `serial` the label must be the only one of its kind."""

    module: str
    label: str
    serial: str | None
    softhsm2_conf: Path | None = None


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a search gave, and how many of the objects that match could not be read."""

    values: list[T]
    broken: int


def _claim(module: str) -> None:
    """Take the module for this process's one user of it. Raises Busy."""
    with _claimed_lock:
        if module in _claimed:
            raise Busy(f"this process uses the PKCS#11 module {module} already: a module has one login per process")
        _claimed.add(module)


def _release(module: str) -> None:
    with _claimed_lock:
        _claimed.discard(module)


def _load(module: str, softhsm2_conf: Path | None) -> "_pkcs11.lib":
    """The module, initialised. Raises TokenUnavailable."""
    if softhsm2_conf is not None:
        os.environ[_CONF_VARIABLE] = str(softhsm2_conf)
    if not os.path.isfile(module):
        raise TokenUnavailable(
            f"the PKCS#11 module {module} does not exist",
            hint="set token.module, or install the module's package",
        )
    with translated(f"to initialise (module {module})"):
        return pkcs11.lib(module)


def _finalise(library: "_pkcs11.lib") -> None:
    # A module that cannot finalise is as gone as one that can: nothing of it is used any more.
    if library.initialized:
        with suppress(pkcs11.PKCS11Error):
            library.finalize()


@contextmanager
def loaded(module: str, softhsm2_conf: Path | None) -> Iterator["_pkcs11.lib"]:
    """The module for a moment, without a login. Raises Busy and TokenUnavailable."""
    _claim(module)
    conf_before = os.environ.get(_CONF_VARIABLE)
    lock = StoreLock(softhsm2_conf)
    try:
        with lock.changing():
            library = _load(module, softhsm2_conf)
            try:
                yield library
            finally:
                _finalise(library)
    finally:
        lock.close()
        if conf_before is None:
            os.environ.pop(_CONF_VARIABLE, None)
        else:
            os.environ[_CONF_VARIABLE] = conf_before
        _release(module)


def describe(token: pkcs11.Token, module: str) -> TokenInfo:
    """A token as its module shows it."""
    return TokenInfo(
        provider=module,
        label=token.label,
        serial=token.serial.decode("ascii", "replace"),
        manufacturer=token.manufacturer_id,
        model=token.model,
        initialised=bool(token.flags & TokenFlag.TOKEN_INITIALIZED),
    )


def list_tokens(module: str, softhsm2_conf: Path | None = None) -> tuple[TokenInfo, ...]:
    """The initialised tokens that a module shows; needs no PIN. Raises Busy and TokenUnavailable."""
    with loaded(module, softhsm2_conf) as library:
        found = [describe(token, module) for token in present_tokens(library)]
    return tuple(sorted((info for info in found if info.initialised), key=lambda info: (info.label, info.serial)))


def present_tokens(library: "_pkcs11.lib") -> list[pkcs11.Token]:
    """Every token that describes itself; one that does not hides no others. Raises TokenUnavailable."""
    with translated("to list its slots"):
        slots = library.get_slots(token_present=True)
    tokens = []
    for slot in slots:
        with suppress(pkcs11.PKCS11Error):
            tokens.append(slot.get_token())
    return tokens


def log_in(token: pkcs11.Token, pin: str, *, read_write: bool) -> pkcs11.Session:
    """The one place where a PIN is given to a token."""
    return token.open(rw=read_write, user_pin=pin)


class TokenSession:
    """The login to one token. Every method blocks; all of them belong to one thread.

    Raises Busy if the process has a session of this module already, TokenUnavailable, PinRefused.
    """

    def __init__(self, address: TokenAddress, pin: str, *, read_write: bool) -> None:
        self._address = address
        self._pin = pin
        self._read_write = read_write
        self._owner = (os.getpid(), threading.get_ident())
        self._pin_refused = self._only_once = False
        self._closed = False
        self._serial = address.serial
        self._session: pkcs11.Session | None = None
        self._token: pkcs11.Token | None = None
        self.lock = StoreLock(address.softhsm2_conf)
        _claim(address.module)
        try:
            with self.lock.changing():  # A login writes to SoftHSM's store.
                self._library = _load(address.module, address.softhsm2_conf)
                try:
                    self._log_in()
                except BaseException:
                    _finalise(self._library)
                    raise
        except BaseException:
            self.lock.close()
            _release(address.module)
            raise

    @property
    def read_write(self) -> bool:
        """May this session change the token?"""
        return self._read_write

    def raw(self) -> pkcs11.Session:
        """python-pkcs11's session. Raises TokenUnavailable if there is none now."""
        self._require_owner()
        if self._session is None:
            raise TokenUnavailable(f"not logged in to token {self._address.label!r}")
        return self._session

    def second(self) -> pkcs11.Session:
        """Another session of the same login that may write; the caller closes it. Raises what PKCS#11 raises."""
        self.raw()
        assert self._token is not None
        return self._token.open(rw=True)

    def info(self) -> TokenInfo:
        """The token, asked now. Raises TokenUnavailable."""
        self.raw()
        assert self._token is not None
        with self.lock.reading(), translated("to describe itself"):
            return describe(self._token.slot.get_token(), self._address.module)

    def require_alive(self) -> None:
        """Return if the token that was logged in to is still there. Raises TokenUnavailable."""
        info = self.info()
        if (info.label, info.serial) != (self._address.label, self._serial):
            raise TokenUnavailable(f"another token is in the place of {self._address.label!r}")

    def search(
        self,
        template: dict[Attribute, Any],
        read: Callable[[pkcs11.Object], T | None],
        *,
        through: pkcs11.Session | None = None,
    ) -> "Found[T]":
        """What `read` makes of every object that matches, without its Nones.

        An object that cannot be read (half-written ones stay for ever in SoftHSM's store) is counted and
        passed over. One that another process destroys meanwhile makes the whole search start again,
        because its replacement may have come after the search began. What `through`, a `second` session,
        finds can be changed through it. Raises TokenUnavailable, also when
        nothing was found because the token is gone.
        """
        self._require_owner()
        with self.lock.reading(), translated("to search its objects"):
            for tries_left in reversed(range(_SEARCH_TRIES)):
                try:
                    found = self._search_once(template, read, through or self.raw())
                    break
                except GONE:
                    self.require_alive()
                    if not tries_left:
                        raise
        if found.broken or not found.values:
            self.require_alive()
        return found

    def _search_once(
        self, template: dict[Attribute, Any], read: Callable[[pkcs11.Object], T | None], session: pkcs11.Session
    ) -> "Found[T]":
        values: list[T | None] = []
        broken = 0
        # Session.get_objects ends at the first object that it cannot make, so its iterator is used.
        with SearchIter(session, template, 1) as batches:
            for batch in batches:
                try:
                    values += [read(item) for item in batch]
                except GONE:
                    raise
                except (pkcs11.PKCS11Error, ValueError):
                    broken += 1
        return Found([value for value in values if value is not None], broken)

    def log_in_no_more(self) -> None:
        """`reopen` raises TokenUnavailable from now on: somebody else decides whether the PIN is tried again."""
        self._only_once = True

    def reopen(self) -> None:
        """Drop every handle, initialise the module again, find the token and log in, once.

        Raises TokenUnavailable, and PinRefused without a try if the PIN was refused before.
        """
        self._require_owner()
        if self._only_once:
            raise TokenUnavailable("the session with the token has ended")
        if self._pin_refused:
            raise PinRefused("the token refused the PIN before; it is not tried again")
        if self._closed:
            raise TokenUnavailable(f"the session with token {self._address.label!r} was closed")
        self._session = self._token = None
        with self.lock.changing():
            _finalise(self._library)
            self._library = _load(self._address.module, self._address.softhsm2_conf)
            self._log_in()

    def close(self) -> None:
        """Log out, finalise the module, let others have it. Idempotent; a dead token is no error."""
        self._require_owner()
        if self._closed:
            return
        self._closed = True
        with self.lock.reading():
            if self._session is not None:
                # A token that is gone has forgotten the login already.
                with suppress(pkcs11.PKCS11Error):
                    self._session.close()
            self._session = self._token = None
            _finalise(self._library)
        self.lock.close()
        _release(self._address.module)

    def _require_owner(self) -> None:
        if (os.getpid(), threading.get_ident()) != self._owner:
            raise RuntimeError("a token session is used from another thread or process than made it")

    def _find(self) -> pkcs11.Token:
        address = self._address
        matching = [
            token
            for token in present_tokens(self._library)
            if token.label == address.label and self._serial in (None, token.serial.decode("ascii", "replace"))
        ]
        wanted = f"token {address.label!r}" + (f" with serial {self._serial}" if self._serial else "")
        if not matching:
            raise TokenUnavailable(f"{wanted} is not there (module {address.module})")
        if len(matching) > 1:
            raise TokenUnavailable(f"more than one {wanted}", hint="set token.serial; cmkfs token list shows it")
        return matching[0]

    def _log_in(self) -> None:
        token = self._find()
        try:
            self._session = log_in(token, self._pin, read_write=self._read_write)
        except pkcs11.PKCS11Error as error:
            refused = translate(error, "to log in")
            self._pin_refused = isinstance(refused, PinRefused)
            raise refused from error
        self._token = token
        self._serial = token.serial.decode("ascii", "replace")
