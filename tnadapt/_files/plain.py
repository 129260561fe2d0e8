"""JSON text as plain data, and back. Nothing in a text is trusted: its size, its keys and their types are checked."""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnadapt._errors import FormatError
from tnadapt._files.limits import HEADER, TODO, check_text, shorten
from tnadapt._signature import told

__all__: list[str] = []

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def dump(data: Mapping[str, Any]) -> str:
    """Return JSON without spaces."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def parse(text: str | bytes) -> dict[str, Any]:
    """Read the object in a JSON text. Raises FormatError for anything else, and for a text above the limits."""
    try:
        decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
        check_text(decoded)
        data = json.loads(decoded, object_pairs_hook=_object)
        if not decoded.isascii() or SURROGATE.search(decoded):
            json.dumps(data, ensure_ascii=False).encode()  # raises for half of a pair, which no name can have
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the text: expected JSON, got text that cannot be parsed: {error}.") from None
    fields: dict[str, Any] = typed("the text", data, dict)
    return fields


def read_object(path: Path, most: int = HEADER) -> dict[str, Any]:
    """Read the object in a JSON file. Raises FormatError for anything else, or if it has more than `most` bytes."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise FormatError(f"{path}: expected at most {most:,} bytes, got more.\n{TODO}")
    try:
        return parse(content.decode())
    except (FormatError, UnicodeDecodeError) as error:
        reason = str(error).rstrip(".")
        raise FormatError(f"{path}: expected one JSON object, got a file that cannot be read ({reason}).") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise FormatError(f"the text: expected each key of an object once, got {told(twice)} twice.")
    return data


def take(
    where: str, data: object, kinds: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the fields of an object after checking its keys and their types.

    Raises FormatError unless it has all of these keys, perhaps optional ones, no others, and each of its type.
    """
    fields = typed(where, data, dict)
    kinds = dict(kinds) | {key: kind for key, kind in (optional or {}).items() if key in fields}
    if unknown := fields.keys() - kinds.keys():
        raise FormatError(
            f"{where}: expected no unknown keys, got {reprlib.repr(sorted(unknown))}.\nWas it saved by a newer release?"
        )
    if missing := kinds.keys() - fields.keys():
        raise FormatError(f"{where}: expected the keys {sorted(missing)}, got none.")
    return {key: typed(f"{where}.{key}", fields[key], kind) for key, kind in kinds.items()}


def typed(where: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise FormatError(f"{shorten(where)}: expected a value of type {expected}, got {type(value).__name__}.")
    return value
