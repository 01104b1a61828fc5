"""Help texts as --help should show them: paragraphs without the line breaks of the source, and no "(default: None)"
behind a text that says itself what happens without the option. tyro by itself shows both."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from typing import Annotated, Any

import tyro


def give_texts(options: type[Any]) -> None:
    """Annotate the fields of a class of options, and of those inside it, with their help texts, in place.

    Args:
        options: A dataclass, each field of which has a docstring below it. Those that were done before are left alone.
    """
    for owner in options.__mro__:
        if dataclasses.is_dataclass(owner) and "_has_help_texts" not in vars(owner):
            type.__setattr__(owner, "_has_help_texts", True)
            _give_own_texts(owner)


def _give_own_texts(owner: type[Any]) -> None:
    texts = field_texts(owner)
    annotations = vars(owner).get("__annotations__", {})
    for name, hint in typing.get_type_hints(owner, include_extras=True).items():
        inside = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(inside):
            give_texts(typing.cast(Any, inside))
        elif name in annotations and name in texts:
            annotations[name] = Annotated[hint, tyro.conf.arg(help=texts[name], help_behavior_hint=_default)]


def _default(shown: str) -> str:
    return "" if shown in ("None", "") else f"(default: {shown})"


def field_texts(owner: type[Any]) -> dict[str, str]:
    """Name of each field of the class's own -> the docstring below it, in one line."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]).body
    texts = {}
    for line, below in itertools.pairwise(body):
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[line.target.id] = " ".join(str(below.value.value).split())
    return texts
