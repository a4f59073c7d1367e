"""Escaping of untrusted text, formatting of sizes and times, and the width that text may take."""

from __future__ import annotations

import os
import re
import unicodedata

MAX_SHOWN = 200
"""Limit of characters of an untrusted string in a message."""


def escape(text: str, keep: str = "") -> str:
    """Replace every character that could control a terminal by its Python escape sequence.

    Printable characters, spaces of every width, the zero-width joiners of scripts and emoji, and the characters of
    `keep` stay. Undecodable bytes of a POSIX file name, which Python holds as lone surrogates, are escaped too.
    """
    return "".join(char if char in keep or _is_harmless(char) else ascii(char)[1:-1] for char in text)


def _is_harmless(char: str) -> bool:
    # str.isprintable() is false for every space but U+0020; French and Japanese text uses others
    return char.isprintable() or char in "\u200c\u200d" or unicodedata.category(char) == "Zs"


def inert(text: str) -> str:
    """Escape multi-line text; newlines and tabs stay."""
    return escape(text, keep="\n\t")


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether a name has the form of a URL, which a Path holds with a single slash after its scheme."""
    return _ADDRESS.match(os.fspath(path)) is not None


def whole(path: str | os.PathLike[str]) -> str:
    """Return a path as text, a URL as it was given."""
    text = os.fspath(path)
    scheme, _, rest = text.partition(":/")
    if not is_address(text) or rest.startswith("/"):
        return text
    return f"{scheme}://{'/' if scheme.lower() == 'file' else ''}{rest}"


def printable(value: object) -> str:
    """Escape a file name or an untrusted string for a message, cut to `MAX_SHOWN` characters."""
    shown = escape(whole(value) if isinstance(value, os.PathLike) else str(value))
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."


def tab_separated(*fields: str) -> str:
    """Join fields to one line; backslashes, tabs and line ends inside them are escaped reversibly."""
    escaped = (
        field.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r") for field in fields
    )
    return "\t".join(escaped)


def amount(number: int) -> str:
    """Format a number of bytes: `"14.4 MB"`, `"3.2 kB"` below 100,000, `"1.2 GB"` from a billion on."""
    if number >= 1e9:
        return f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def counted(number: float, noun: str) -> str:
    """Format a number of things: `"1 frame"`, `"0.5 frames"`."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format a time span with three digits: `"1,234 s"`, `"12.3 s"`, `"4.56 ms"`."""
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.3g} ms"


def span(seconds: float) -> str:
    """Format a rough time span: `"40 s"`, `"27 min"`, `"3.5 h"`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.2g} h"


def clock(seconds: float) -> str:
    """Format a time in a video: `"M:SS"`, with hours from the first hour on and a tenth if it is not a whole second."""
    minutes, tenths = divmod(round(max(seconds, 0.0) * 10), 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02d}" + (f".{tenths % 10}" if tenths % 10 else "")
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"


def stated_columns() -> int | None:
    """Return the width of the terminal that the environment variable COLUMNS states; None if it states none."""
    text = os.environ.get("COLUMNS", "")
    return int(text) or None if text.isascii() and text.isdigit() else None
