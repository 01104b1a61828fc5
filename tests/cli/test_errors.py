"""Errors of the machine, not of the data: one line each where the user can mend them, a traceback where not."""

import errno
import sys
import types
from pathlib import Path

import pytest

from hashfield.cli import evaluate, main
from hashfield.data.demo_scene import make_demo_scene
from hashfield.errors import DataError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """A verb "test" that raises what it is given."""

    def install(error: BaseException) -> None:
        def raising(arguments: list[str]) -> int:
            raise error

        module = types.ModuleType("a_verb_for_tests")
        module.main = raising  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(main.VERBS, "test", (module.__name__, "for tests"))

    return install


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b.json"), "a/b.json: Permission denied"),
        (DataError("a.json: frame 3: w:\nwrong"), "a.json: frame 3: w: wrong"),
        (ModuleNotFoundError("no", name="tensorboard.compat"), "hashfield[tensorboard]"),
        (MemoryError(), "out of memory: close other programs"),
    ],
)
def test_one_line_and_code_2(error: Exception, words: str, verb, capsys: pytest.CaptureFixture[str]):
    verb(error)
    assert main.run(["test"]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OSError("no file, no number"), ModuleNotFoundError("no", name="ours"), KeyError("x")]
)
def test_bugs_keep_their_traceback(error: Exception, verb):
    verb(error)
    with pytest.raises(type(error)):
        main.run(["test"])


def test_debug_shows_every_traceback(verb):
    verb(DataError("x"))
    with pytest.raises(DataError):
        main.run(["--debug", "test"])


def test_an_interrupt_is_130(verb, capsys: pytest.CaptureFixture[str]):
    verb(KeyboardInterrupt())
    assert main.run(["test"]) == 130
    assert capsys.readouterr().err == "hashfield: interrupted\n"


def test_a_demo_run_is_evaluated_on_its_own_views(monkeypatch: pytest.MonkeyPatch):
    scene, _ = make_demo_scene(5, size=40, n_train=3, n_test=2)
    cameras = {split: list(views.cameras) for split, views in scene.splits.items()}
    model = types.SimpleNamespace(info={"scene": {"name": "demo", "path": "demo"}}, cameras=cameras)
    monkeypatch.setattr(evaluate, "read_metadata", lambda path: {"seed": 5})
    monkeypatch.setattr(evaluate.RunFolder, "open", lambda path: types.SimpleNamespace(checkpoint=path))
    found = evaluate.views_of(model, evaluate.Evaluate(run=Path("x")))  # type: ignore[arg-type]
    assert found.cameras == scene.splits["test"].cameras
    assert all((a == b).all() for a, b in zip(found.images, scene.splits["test"].images, strict=True))
    with pytest.raises(DataError, match="no split 'val'"):
        evaluate.views_of(model, evaluate.Evaluate(run=Path("x"), split="val"))  # type: ignore[arg-type]
