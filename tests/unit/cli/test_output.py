"""Exit codes that several things give together, and what reaches the terminal."""

import pytest

from cmkfs.cli.output import combined, printable, said, table


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([0, 0], 0), ([0, 1], 1), ([1, 6], 1), ([6], 6), ([5, 3], 3), ([3, 4, 5], 4), ([1, 4], 4),
     ([4, 7], 7), ([7, 2, 4], 2), ([5, 1], 5)],
)  # fmt: skip
def test_the_first_of_2_7_4_3_5_wins(codes: list[int], code: int) -> None:
    assert combined(codes) == code


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("a\nb", r"a\nb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b", r"\x9b"),
        ("\udcff", "\udcff"),
        ("\x7f", r"\x7f"),
    ],
)
def test_nothing_steers_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file", "a/b"), "a/b: No such file"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (TimeoutError("timed out"), "timed out"),
    ],
)
def test_an_error_of_the_system_names_the_file_if_there_is_one(error: OSError, text: str) -> None:
    assert said(error) == text


def test_columns_are_aligned() -> None:
    assert table([("A", "LONG"), ("bbb", "c")]) == ["A    LONG", "bbb  c"]
