"""The architecture, enforced: which part may import which, and how long functions and files may get."""

import ast
import os
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "cmkfs"

MAY_IMPORT: dict[str, set[str]] = {
    # what everything stands on
    "errors": set(),
    "accounts": set(),
    "looking": set(),
    "priority": set(),
    "privileges": set(),
    "caller": set(),
    "toml_source": {"errors"},
    "home": {"errors"},
    "config": {"errors", "toml_source"},
    "schedule": set(),
    "policy": {"schedule"},
    "policyfile": {"errors", "policy", "schedule", "toml_source"},
    "audit": {"accounts", "config", "errors", "home"},
    # the data path, from the bytes on disk up to the kernel
    "format": {"errors"},
    "crypto": {"errors", "format"},
    "fuse": {"caller", "errors", "looking"},
    "keys": {
        "caller",
        "looking",
        "priority",
        "privileges",
        "accounts",
        "audit",
        "config",
        "crypto",
        "errors",
        "format",
        "home",
        "policy",
        "policyfile",
    },
    "fs": {"caller", "fuse", "looking", "priority", "audit", "crypto", "errors", "format", "keys", "policy"},
    "maintenance": {"crypto", "errors", "format", "fs", "keys"},
    # how commands talk to a mount: knows nothing of what a mount does
    "control": {"errors", "home"},
    # the composition root, and what people type
    "auditing": {"audit", "config", "errors", "home", "keys"},
    "zones": {"errors", "format", "fs", "keys"},
    "mounted": {"audit", "fuse"}
    | {"config", "control", "crypto", "errors", "format", "fs", "home", "keys", "policy", "zones"},
    "answers": {
        "audit",
        "auditing",
        "caller",
        "config",
        "control",
        "errors",
        "format",
        "fs",
        "fuse",
        "keys",
        "mounted",
        "policy",
    },
    "mount": {
        *("answers", "auditing", "config", "control", "crypto", "errors", "format", "fs", "fuse", "home", "keys"),
        "mounted",
        "policy",
        "privileges",
    },
    "cli": {
        *(
            "accounts",
            "audit",
            "auditing",
            "config",
            "control",
            "errors",
            "format",
            "fs",
            "home",
            "keys",
            "maintenance",
            "mount",
        ),
        *("policy", "policyfile"),
    },
    "__init__": set(),
    "__main__": {"cli"},
}
"""Which parts of cmkfs a part may import, beside itself. What is not listed here, a new part too, fails."""

ONLY_IN: dict[str, set[str]] = {
    "click": {"cli"},
    "cryptography": {"crypto", "keys"},
    "pkcs11": {"keys"},
}
"""Which parts know a library at all."""

PURE = [
    "errors.py",
    "policy.py",
    "policyfile.py",
    "schedule.py",
    "keys/cmk.py",
    *(f"format/{path.name}" for path in PACKAGE.glob("format/*.py")),
]
"""Modules that only decide or lay out bytes: the same answer for the same arguments, nothing else happens."""

IMPURE = {"os", "io", "socket", "subprocess", "threading", "time", "trio", "pkcs11", "pathlib"}

FUNCTION_LIMIT = 80
FILE_LIMIT = 400
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

SOURCES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [
    *SOURCES,
    *(REPOSITORY / "scripts" / name for name in ("bench", "bench-lock", "lock-races")),
    *(REPOSITORY / "scripts" / "benchmark").glob("*.py"),
]
# Not rglob: it follows the symlinks of the vaults among the tests, whose targets can be too long for a path.
TESTS = sorted(Path(at, name) for at, _, names in os.walk(REPOSITORY / "tests") for name in names if name[-3:] == ".py")
EVERYTHING = [*PROGRAMS, *TESTS]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def part_of(path: Path) -> str:
    """`cmkfs/fs/backing.py` -> `fs`; `cmkfs/policy.py` -> `policy`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of all that a module imports, inside of functions too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            # `from cmkfs import home` names a module, `from cmkfs.home import Home` what is in one.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of each import from cmkfs itself; `__init__` for the package (its version)."""
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        if top == "cmkfs":
            part = rest.partition(".")[0]
            known = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
            yield line, part if part and known else "__init__"


def test_the_layers_have_no_cycle() -> None:
    order = list(TopologicalSorter(MAY_IMPORT).static_order())
    assert set(order) == set(MAY_IMPORT), "a layer that is named but not listed"
    data_path = ["errors", "format", "crypto", "keys", "fs", "mounted", "mount", "cli"]
    assert [part for part in order if part in data_path] == data_path


def test_every_listed_part_exists() -> None:
    assert {part_of(path) for path in SOURCES} == set(MAY_IMPORT)


def test_imports_go_downward() -> None:
    upward = [
        f"{name_of(path)}:{line}: {part_of(path)} may not import {other}"
        for path in SOURCES
        for line, other in imported_parts(path)
        if other not in MAY_IMPORT[part_of(path)] | {part_of(path), "__init__"}
    ]
    assert upward == []


def test_libraries_stay_in_their_place() -> None:
    strays = [
        f"{name_of(path)}:{line}: {name}"
        for path in SOURCES
        for line, name in imports(path)
        if part_of(path) not in ONLY_IN.get(name.partition(".")[0], {part_of(path)})
    ]
    assert strays == []


def test_pure_modules_do_no_input_or_output() -> None:
    strays = [
        f"{name}:{line}: {what}"
        for name in PURE
        for line, what in imports(PACKAGE / name)
        if what.partition(".")[0] in IMPURE
    ]
    assert strays == []


def test_the_second_reader_and_the_vectors_use_nothing_of_cmkfs() -> None:
    vectors = [path for path in TESTS if path.parent.name == "vectors" and path.name[:5] != "test_"]
    assert len(vectors) >= 2
    assert [name_of(path) for path in vectors for _, what in imports(path) if what[:5] == "cmkfs"] == []


def test_files_are_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in PROGRAMS}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LIMIT} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{name_of(path)}:{node.lineno}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in EVERYTHING
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LIMIT} == {}


def test_no_module_has_a_vague_name() -> None:
    places = [*EVERYTHING, *(path.parent for path in EVERYTHING)]
    assert [name_of(path) for path in places if path.stem in VAGUE_NAMES] == []


def test_no_exception_is_swallowed() -> None:
    swallowed = [
        f"{name_of(path)}: {ast.unparse(node)}"
        for path in PROGRAMS
        for node in ast.walk(parsed(path))
        if swallows(node)
    ]
    assert swallowed == []


def swallows(node: ast.AST) -> bool:
    """Does it catch everything, and go on as if nothing had been?"""
    match node:
        case ast.ExceptHandler(type=None | ast.Name(id="Exception" | "BaseException"), body=body):
            return all(isinstance(line, ast.Pass | ast.Continue) for line in body)
        case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args):
            return any(isinstance(arg, ast.Name) and arg.id in ("Exception", "BaseException") for arg in args)
    return False


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("try: f()\nexcept: pass", True),
        ("try: f()\nexcept Exception: pass", True),
        ("try: f()\nexcept BaseException:\n    continue", True),
        ("with contextlib.suppress(Exception): f()", True),
        ("try: f()\nexcept FileNotFoundError: pass", False),
        ("try: f()\nexcept Exception as error: log(error)", False),
        ("with suppress(FileNotFoundError): f()", False),
    ],
)
def test_swallows(source: str, expected: bool) -> None:
    assert any(swallows(node) for node in ast.walk(ast.parse(source))) is expected
