"""Which line sets what."""

import pytest

from cmkfs.toml_source import Key, read

TEXT = '''\
top = 1
a.b = { c = 1, d = { e = 2 } }

[table]  # a comment
"quoted key" = """
[not.a.table]
"""
array = [
    "one",
    "two",
]

[[rule]]
id = "x"
[rule.when]
from = 1
[[rule]]
id = "y"
[[rule.more]]
z = 1
[[rule.more]]
z = 2
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("top",), 1),
        (("a", "b"), 2),
        (("a", "b", "d", "e"), 2),
        (("a", "b", "missing"), 2),
        (("table",), 4),
        (("table", "quoted key"), 5),
        (("table", "array"), 8),
        (("table", "missing"), 4),
        (("not",), 1),
        (("rule", 0), 13),
        (("rule", 0, "id"), 14),
        (("rule", 0, "when", "from"), 16),
        (("rule", 1), 17),
        (("rule", 1, "id"), 18),
        (("rule", 1, "more", 1, "z"), 22),
        (("rule", 1, "missing"), 17),
    ],
)
def test_the_line_of_a_key(key: Key, line: int) -> None:
    assert read(TEXT, name="t").line(key) == line


def test_the_line_of_an_element_of_a_long_array() -> None:
    source = read(TEXT, name="t")
    assert source.line(("table", "array"), containing="two") == 10
    assert source.line(("table", "array"), containing="three") == 8
    assert str(source.error(("table", "array"), "bad", containing="two")) == "t:10: bad"
