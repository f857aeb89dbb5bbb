"""All chains of a home against all that remembers them: the token, and the mounts that live."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmkfs.audit.chain import Head
from cmkfs.audit.reading import Chain, Result, chains, missing, verify
from cmkfs.auditing import place_of
from cmkfs.cli.mounts import known
from cmkfs.cli.token_session import token
from cmkfs.control import client
from cmkfs.control.protocol import Fields
from cmkfs.errors import CmkfsError
from cmkfs.home import Home
from cmkfs.keys.provider import KeyProvider

_TRIES = 5


def verify_all(home: Home, archive: Sequence[Path], *, partial: bool) -> tuple[list[Result], list[str]]:
    """A result for each chain, and what else is to be said. Raises TokenUnavailable, NotFound, …"""
    directories = [home.audit_dir, *archive]
    place = place_of(home.audit_dir)
    with token(home, read_write=False) as provider:
        for _ in range(_TRIES):
            # The ends first: what is written meanwhile may be longer than they say, never shorter.
            remembered = provider.audit_heads()
            live, notes = _live(home)
            before = chains(directories)
            results = [_verify(chain, provider, remembered, live, partial) for chain in before]
            if chains(directories) == before:
                break  # else a file was moved aside meanwhile, and may have been missed
    results += missing(remembered, before, place)
    elsewhere = sorted({head.place for head in remembered if head.place != place})
    notes += [f"the token also remembers the log in {where}" for where in elsewhere]
    return results, notes


def _verify(
    chain: Chain, provider: KeyProvider, remembered: Sequence[Head], live: Sequence[Head], partial: bool
) -> Result:
    heads = [(head, "the token") for head in remembered if head.chain == chain.chain]
    heads += [(head, "the mount") for head in live if head.chain == chain.chain]
    result = verify(chain, provider.audit_mac, heads, partial=partial)
    if result.fault and not result.records and not any(told == "the token" for _, told in heads):
        # Each record is authentic under the key of the token that was there when it was written.
        return replace(result, fault=f"{result.fault}; or another token than this one wrote the log")
    return result


def _live(home: Home) -> tuple[list[Head], list[str]]:
    """The ends that live mounts tell, and which mounts did not tell."""
    heads, notes = [], []
    for entry, answer in client.ask_each(known(home)[0], lambda entry: client.ask(entry, "audit")):
        if isinstance(answer, CmkfsError):
            notes.append(f"{entry.label} did not say where its log ends: {answer}")
        else:
            heads.append(_head(answer))
    return heads, notes


def _head(answer: Fields) -> Head:
    chain, place, name, mac = (str(answer[key]) for key in ("chain", "place", "name", "mac"))
    return Head(chain, place, name, int(str(answer["seq"])), mac)
