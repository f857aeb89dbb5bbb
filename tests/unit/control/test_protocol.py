"""JSON lines to values and back."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmkfs import errors
from cmkfs.control.protocol import (
    REQUEST_LIMIT,
    Request,
    answer_line,
    error_fields,
    error_from,
    error_line,
    result_of,
)
from cmkfs.errors import CmkfsError, UsageError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
fields = st.dictionaries(st.text().filter(lambda name: name != "op"), values, max_size=5)


@given(op=st.text(), arguments=fields)
def test_a_request_comes_back_as_it_was(op: str, arguments: dict[str, object]) -> None:
    line = Request(op, arguments).to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Request.from_line(line) == Request(op, arguments)


@given(fields)
def test_an_answer_comes_back_as_it_was(answer: dict[str, object]) -> None:
    assert result_of(answer_line(answer)) == answer


@given(st.binary())
def test_any_bytes_are_a_request_or_a_usage_error(line: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(Request.from_line(line), Request)


@pytest.mark.parametrize(
    "kind",
    [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, CmkfsError)],
)
def test_every_error_keeps_its_class_message_and_hint(kind: type[CmkfsError]) -> None:
    with pytest.raises(kind, match="what is wrong") as caught:
        result_of(error_line(kind("what is wrong", hint="try this")))
    assert type(caught.value) is kind
    assert caught.value.next_step == "try this"


@pytest.mark.parametrize("name", ["FromTheFuture", "EXIT_BUSY", "ClassVar", "__doc__"])
def test_a_class_that_is_no_error_of_ours_becomes_the_base(name: str) -> None:
    error = error_from({**error_fields(UsageError("x")), "class": name})
    assert type(error) is CmkfsError


@pytest.mark.parametrize("line", [b"", b"{}\n", b'{"ok":1}\n', b"nonsense\n"])
def test_what_is_no_answer_is_an_error(line: bytes) -> None:
    with pytest.raises(CmkfsError, match="none"):
        result_of(line)


def test_a_request_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(UsageError, match="too long"):
        Request("op", {"x": "y" * REQUEST_LIMIT}).to_line()
