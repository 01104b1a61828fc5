"""What the kinds of tasks have in common."""

from hashfield.errors import ConfigError


def parse_background(text: str) -> tuple[float, float, float]:
    """(r, g, b) in 0..1 of "white", "black" or "#rrggbb".

    Raises:
        ConfigError: it is none of these.
    """
    named = {"white": "#ffffff", "black": "#000000"}
    code = named.get(text.lower(), text)
    try:
        if len(code) != 7 or code[0] != "#":
            raise ValueError
        r, g, b = (int(code[k : k + 2], 16) / 255 for k in (1, 3, 5))
    except ValueError:
        raise ConfigError(f"background: expected white, black or #rrggbb, got {text!r}") from None
    return r, g, b
