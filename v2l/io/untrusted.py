"""Reading of files that anyone may have written: regular files only, whole, and within a size limit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable
from v2l.io.text import printable

MAX_JSON_BYTES = 4 << 20
"""Limit for a JSON file of a model folder. The published ones have at most 50 kB, except for their tokenizers."""


def read_limited(path: Path, limit: int) -> bytes:
    """Read a whole regular file. Holds at most `limit` + 1 bytes, whatever the file's size.

    Raises FileNotFoundError if it is missing, and V2LError if it cannot be read, is not a regular file or has more
    than `limit` bytes.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > limit else file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    size = max(size, len(content or b""))
    if size > limit:
        raise V2LError(f"{printable(path)} has {size:,} bytes, v2l reads at most {limit:,}; get another copy of it")
    return content or b""


def read_json(path: Path, limit: int = MAX_JSON_BYTES, optional: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    optional: return an empty object if the file is missing
    Raises V2LError if it cannot be read or is not a JSON object; NaN and Infinity are not JSON.
    """
    try:
        content = json.loads(read_limited(path, limit).decode("utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        if optional:
            return {}
        raise V2LError(f"{printable(path)} is missing; name a folder in the Hugging Face layout") from error
    except (ValueError, RecursionError) as error:
        raise V2LError(f"{printable(path)} is not JSON: {json_error(error)}; get another copy of it") from error
    if not isinstance(content, dict):
        raise V2LError(f"{printable(path)} is not a JSON object; get another copy of it")
    return content


def json_error(error: Exception) -> str:
    """Describe why a text is not JSON: `"Expecting ',' delimiter at column 12"`, with the line if it has several."""
    if not isinstance(error, json.JSONDecodeError):
        return printable(error)
    line = f"line {error.lineno}, " if "\n" in error.doc.strip() else ""
    return f"{error.msg} at {line}column {error.colno}"


def shown(value: object) -> str:
    """Format a JSON value for a message, in constant time however large or deep it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return printable(str(value)[:300])


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
