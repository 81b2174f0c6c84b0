"""HTML elements that escape what they are given, so that no text can become markup."""

from __future__ import annotations

from html import escape

CONTROLS = (
    *(code for code in range(32) if chr(code) not in "\t\n"),
    *range(0x7F, 0xA0),
    *(0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)),  # directions, lines
    *range(0xD800, 0xE000),
)
"""Characters that show nothing but change how a terminal or a page shows the others."""

_REPLACED = dict.fromkeys(CONTROLS, "\ufffd")


def visible(text: str) -> str:
    """The text with a replacement character for every one of :data:`CONTROLS`."""
    return text.translate(_REPLACED)


class Safe(str):
    """Markup that is already escaped; any other string is text."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Safe:
    """Build one element: text children and attribute values are escaped, markup is kept.

    Args:
        name: Name of the element; ``"br"``, ``"meta"`` and the like may have no children.
        children: Text, or elements made by this function.
        attributes: A trailing underscore is dropped and others become hyphens (``class_``,
            ``stroke_width``); None leaves the attribute out.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(visible(_plain(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in ("br", "meta", "hr"):
        return Safe(f"<{name}{pairs}>")
    return Safe(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*children: str) -> Safe:
    """Put markup and text side by side, the text escaped."""
    return Safe("".join(c if isinstance(c, Safe) else escape(visible(c)) for c in children))


def _plain(value: str | float) -> str:
    """Coordinates to a hundredth of a pixel: pages stay small and the same everywhere."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
