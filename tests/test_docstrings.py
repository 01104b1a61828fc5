"""Docstrings are sentences that a stranger understands, and functions of many parameters explain them."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hashfield"

# Docstrings that lean on something the reader has not seen, such as the signature or the docstring before it.
UNCLEAR_START = re.compile(r"Of |The same\b|Nothing\b|See there\b|\.\.\.|[a-z]")
UNCLEAR_ARGUMENT = re.compile(r"^\s*[\w, ]+: (Of |The same\b|Nothing\b).*", re.M)
POINTS_ELSEWHERE = re.compile(r"\b[Ss]ee `[^`]+`")
FEWEST_PARAMETERS_TO_EXPLAIN = 3

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


def text_of(statement: ast.stmt) -> str | None:
    """The text of a statement that is only a string, with its indentation removed."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return value.strip() if isinstance(value, str) else None
    return None


def docstrings(tree: ast.Module) -> list[tuple[str, int, str]]:
    """Name, line and text of every docstring: of modules, classes, functions, and of fields (the string below one)."""
    found = []

    def visit(node: ast.AST, name: str) -> None:
        body = getattr(node, "body", [])
        if isinstance(node, Documented) and body and (text := text_of(body[0])) is not None:
            found.append((name or "(module)", body[0].lineno, text))
        if isinstance(node, ast.Module | ast.ClassDef):
            for field, below in pairwise(body):
                if isinstance(field, ast.AnnAssign | ast.Assign) and (text := text_of(below)) is not None:
                    target = field.target if isinstance(field, ast.AnnAssign) else field.targets[0]
                    found.append((f"{name}.{ast.unparse(target)}".lstrip("."), below.lineno, text))
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}".lstrip(".") if isinstance(child, ast.ClassDef | Function) else name
            visit(child, inner)

    visit(tree, "")
    return found


def unclear_starts(source: str) -> list[tuple[str, int, str]]:
    """Name, line and words of the docstrings that do not begin as sentences of their own, or whose arguments do not."""
    found = []
    for name, line, text in docstrings(ast.parse(source)):
        if unclear := UNCLEAR_START.match(text) or UNCLEAR_ARGUMENT.search(text):
            found.append((name, line, text[unclear.start() :].strip()[:60]))
    return found


def without_args(source: str) -> list[tuple[str, int, str]]:
    """Name, line and parameters of the public functions and methods that have many and do not explain them."""
    found = []

    def visit(body: list[ast.stmt], owner: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{owner}{node.name}.")
            elif isinstance(node, Function) and not node.name.startswith("_"):
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                names = [name for name in names if name not in ("self", "cls")]
                text = ast.get_docstring(node) or ""
                explained = re.search(r"^Args:$", text, re.M) or POINTS_ELSEWHERE.search(text)
                if len(names) >= FEWEST_PARAMETERS_TO_EXPLAIN and not explained:
                    found.append((f"{owner}{node.name}", node.lineno, ", ".join(names)))
            elif isinstance(node, ast.If):  # such as `if TYPE_CHECKING`
                visit([*node.body, *node.orelse], owner)

    visit(ast.parse(source).body, "")
    return found


def of_the_package(check, skip: str = "") -> dict[str, str]:
    """What a check finds in all files but those below `skip`: "file: name" with line and detail."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        if not (skip and place.startswith(skip)):
            for name, line, detail in check(path.read_text()):
                found[f"{place}: {name}"] = f"{place}:{line} {name}: {detail}"
    return found


@pytest.mark.parametrize(("check", "skip"), [(unclear_starts, ""), (without_args, "kernels/")], ids=["starts", "args"])
def test_docstrings_of_the_package(check, skip: str):
    found = of_the_package(check, skip)
    assert not found, "\n".join(found.values())


PLANTED = '''
"""The same for modules."""
class Config:
    rate: float = 0.1
    """Of Adam."""
    decay: float = 0.2
    """Decay per step."""
    def move(self, a, b, c):
        """Nothing; moves in place."""
    def _hidden(self, a, b, c):
        """Return the sum."""
def march(a, b, *, c):
    """... and the rest."""
def encode(a, b, c):
    """Return codes.

    Args:
        a: Points [n, 3].
        b: Of the table.
    """
def decode(a, b, c):
    """Return points. See `encode`."""
def two(a, b):
    """lower case."""
'''


def test_planted_docstrings_are_found():
    assert [n for n, _, _ in unclear_starts(PLANTED)] == [
        "(module)",
        "Config.rate",
        "Config.move",
        "march",
        "encode",
        "two",
    ]
    assert [n for n, _, _ in without_args(PLANTED)] == ["Config.move", "march"]
