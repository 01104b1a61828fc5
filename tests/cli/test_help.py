"""Every line of every --help is a sentence that stands alone: it is an entry of its own for whoever reads it."""

import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from hashfield.cli import shared
from hashfield.cli.help_texts import field_texts
from hashfield.cli.main import VERBS, main
from hashfield.tasks import KINDS

ONE_FOR_ALL = ("prepare", "inspect", "mesh", "export", "info")
"""Verbs that are the same for every kind."""


class _Asked(BaseException):
    """Carries the class of options that a command asked for."""


def commands() -> Iterator[tuple[str, Any]]:
    """(words after hashfield, the function that takes the rest) of every command."""
    import importlib

    for verb in ONE_FOR_ALL:
        yield verb, importlib.import_module(VERBS[verb][0]).main
    for kind in KINDS:
        for verb in kind.commands:
            yield f"{verb} {kind.name}", kind.command(verb)


def options_of(command: Any, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """The class that a command's options are parsed into."""

    def asked(kind: type[Any], **unused: Any) -> Any:
        raise _Asked(kind)

    monkeypatch.setattr(shared.tyro, "cli", asked)
    with pytest.raises(_Asked) as caught:
        command([])
    return caught.value.args[0]


def entries(options: type[Any]) -> Iterator[tuple[str, str]]:
    """(option, help text) of a class of options and of those inside it; the text is empty where there is none."""
    yield options.__name__, inspect.getdoc(options) or ""
    texts: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        texts |= field_texts(owner)
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from entries(typing.cast(Any, hints[field.name]))
        yield f"{options.__name__}.{field.name}", texts.get(field.name, "")


def fault(text: str) -> str | None:
    """What keeps a help text from being a sentence that stands alone, or None."""
    text = " ".join(text.split())
    if not text:
        return "there is none"
    if not text.endswith("."):
        return "does not end with a full stop"
    if not text[0].isupper():
        return "does not begin with a capital"
    if text.startswith(("Of ", "The same", "At the ", "Nothing")) or "..." in text.replace(
        "transforms_train.json ...", ""
    ):
        return "leans on its neighbours"
    return None


@pytest.mark.parametrize(
    ("words", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_help_text_is_a_sentence(words: str, command: Any, monkeypatch: pytest.MonkeyPatch):
    wrong = [
        f"{name}: {text!r} {fault(text)}" for name, text in entries(options_of(command, monkeypatch)) if fault(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    ["", "Of training.", "The same for the height.", "Width of it", "...nor more.", "white or black.", "And so..."],
)
def test_the_rule_finds_what_is_no_sentence(text: str):
    assert fault(text) is not None


def test_the_rule_lets_sentences_pass():
    assert fault("Seconds to train for.") is None


def test_texts_are_shown_as_paragraphs_and_no_default_as_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "nerf", "--help"])
    shown = capsys.readouterr().out
    assert "(default: None)" not in shown and "(default: )" not in shown
    assert "(default: white)" in shown
    # The source breaks this text in the middle of these words.
    assert "opencv along +z, as some exporters do. (default: opengl)" in shown
