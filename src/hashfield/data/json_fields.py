"""One JSON data file and its objects, read with checks whose errors name file, place and field."""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hashfield.errors import DataError

_LARGEST: Final = 1e300  # numbers beyond this would overflow in the first product


@dataclass(frozen=True)
class Fields:
    """One object of a file together with its place, e.g. "transforms.json: frame 3 (images/a.png)"."""

    values: Mapping[str, Any]
    """Without fields that are null: these count as absent."""
    place: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {name: value for name, value in self.values.items() if value is not None})

    def fail(self, name: str, message: str) -> DataError:
        """The error to raise about a field."""
        return DataError(one_line(f"{self.place}: '{name}': {message}"))

    def has(self, *names: str) -> bool:
        """Whether any of these fields is there and not null."""
        return any(name in self.values for name in names)

    def number(self, name: str, *, above: float = -math.inf, below: float = math.inf) -> float | None:
        """The finite number there, None where the field is absent.

        Args:
            name: The field.
            above: Bound that the number must exceed.
            below: Bound that it must stay under.

        Raises:
            DataError: not a number, not finite, or not between the bounds (which are not reached).
        """
        if name not in self.values:
            return None
        value = self.finite(name, self.values[name])
        if not above < value < below:
            bounds = [f"above {above:g}"] * math.isfinite(above) + [f"below {below:g}"] * math.isfinite(below)
            raise self.fail(name, f"expected a number {' and '.join(bounds)}, got {value:g}")
        return value

    def whole(self, name: str) -> int | None:
        """The whole number there (3 or 3.0), None where the field is absent."""
        value = self.number(name)
        if value is not None and value != int(value):
            raise self.fail(name, f"expected a whole number, got {value:g}")
        return None if value is None else int(value)

    def boolean(self, name: str) -> bool | None:
        """The truth value there (0 and 1 serve too), None where the field is absent."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        raise self.fail(name, f"expected true or false, got {kind(value)}")

    def numbers(self, name: str, count: int) -> list[float] | None:
        """The list of so many finite numbers there, None where the field is absent."""
        if name not in self.values:
            return None
        return self.row(name, self.values[name], count)

    def row(self, name: str, value: object, count: int, where: str = "") -> list[float]:
        """Return `value` as a list of exactly `count` finite numbers.

        Args:
            name: The field, for the error.
            value: What was read there.
            count: How many numbers are expected.
            where: Words that follow the count in the error.
        """
        if not isinstance(value, list) or len(value) != count:
            got = f"{len(value)} entries" if isinstance(value, list) else kind(value)
            raise self.fail(name, f"expected {count} numbers{where}, got {got}")
        return [self.finite(name, item) for item in value]

    def finite(self, name: str, value: object) -> float:
        """`value` as a finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(name, f"expected a number, got {kind(value)}")
        if not abs(value) < _LARGEST:  # NaN too
            raise self.fail(name, f"not finite ({value!s:.12})")
        return float(value)


def kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    names = {type(None): "null", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), f"the number {value}")


def one_line(text: str) -> str:
    """The text without line breaks and control characters: names of files may hold any."""
    return "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list and how many more there are, in one line."""
    shown = ", ".join(names[:most])
    return one_line(shown if len(names) <= most else f"{shown} and {len(names) - most} more")


_COMMENT: Final = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)


def _strip_comments(text: str) -> str:
    """The text with // and /* */ comments blanked; strings, line and column numbers stay."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)

    return _COMMENT.sub(blank, text)


def load_json(path: Path) -> object:
    """The value in a JSON file; // and /* */ comments and a byte-order mark are accepted.

    Raises:
        DataError: not readable, not UTF-8, or not JSON, with line and column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return json.loads(_strip_comments(text))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{path}: not valid JSON: {place}: {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{path}: not valid JSON: nested too deep") from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{path}: not valid JSON: {error}") from error
