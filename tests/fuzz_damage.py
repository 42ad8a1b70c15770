"""Damage done to files on purpose: bytes, JSON and names as somebody with bad intentions writes them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

#: Names that lead out of a folder, or look as if they did not.
NAMES = (
    *("../secret.safetensors", "../../etc/passwd", "/etc/passwd", "/etc/hostname", "..", ".", "", "/", "//x"),
    *(
        "a\0b",
        "..\\secret",
        "C:\\secret",
        "c:secret",
        "\\\\host\\share",
        "~/.ssh/id_rsa",
        "file:///etc/passwd",
    ),
    *(
        "\u2024\u2024/secret",
        "..\u2215secret",
        "..\uff0fsecret",
        "\ufeff../x",
        "x/../../secret",
        "./x",
        "x/",
        "CON",
    ),
    *(
        "\ud800",
        "x" * 300,
        "x/" * 2000 + "y",
        "\n",
        "\x1b[31m",
        "$(id)",
        "`id`",
        "%2e%2e/x",
        "model.safetensors",
    ),
)
#: Numbers that are no sizes, counts or places.
NUMBERS = (
    *(-1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 10**400),
    *(0.5, -0.0, 1e308, 1e-320, float("inf"), float("-inf"), float("nan")),
)
#: Anything else.
VALUES = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    {"": {}},
    "a",
    "F32",
    "llama",
    "\ud83d",
    [1, 2],
    {"content": "<s>"},
    [None],
)


def nested(depth: int, rng: random.Random) -> Any:
    """A value that is nested so deeply."""
    value: Any = copy.deepcopy(rng.choice(VALUES))
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def hostile(rng: random.Random) -> Any:
    """A value that nobody expects."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NUMBERS)
    if kind < 0.6:
        return rng.choice(NAMES)
    if kind < 0.95:
        return copy.deepcopy(rng.choice(VALUES))
    return nested(rng.choice((3, 30, 150, 400)), rng)


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    """Every place in a value, as container and key."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _places(value[key], found)


def damage_value(value: Any, rng: random.Random) -> Any:
    """JSON data with something replaced, left out, renamed, added, doubled or swapped."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found: list[tuple[Any, Any]] = []
        _places(value, found)
        if not found:
            return hostile(rng)
        # What lies deep is more numerous, and what lies at the top matters as much.
        place, key = rng.choice(found[: rng.choice((8, 40, len(found)))])
        kind = rng.random()
        if kind < 0.5:
            place[key] = hostile(rng)
        elif kind < 0.6:
            del place[key]
        elif kind < 0.7 and isinstance(place, dict):
            place[str(rng.choice(NAMES))] = place.pop(key)
        elif kind < 0.8:
            other, there = rng.choice(found)
            # Only what is still there, and never into itself.
            if (there in other) if isinstance(other, dict) else (there < len(other)):
                place[key] = json.loads(json.dumps(other[there]))
        elif isinstance(place, list):
            place.insert(key, hostile(rng))
        else:
            place[str(hostile(rng))[:50]] = hostile(rng)
    return value


_SCRAPS = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\0",
    b"\xff",
    b"\\ud800",
    b"1" * 5000,
    b"NaN",
    b"<",
    b"\n",
)


def damage_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut, put in, doubled, or numbers in them that lie."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        # Headers are at the beginning, and lists of what an archive holds at the end.
        limit = rng.choice((16, 64, 1024, max(1, len(data))))
        at = rng.randrange(max(1, min(limit, len(data))))
        if rng.random() < 0.2:
            at = max(0, len(data) - 1 - at)
        kind = rng.random()
        if kind < 0.3:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.45 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.65:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 2, 255, 2**15, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data)))
            data[at : at + width] = (number % 256**width).to_bytes(width, "little")
        elif kind < 0.75:
            del data[at:]
        elif kind < 0.85:
            del data[at : at + rng.choice((1, 4, 8, 100))]
        elif kind < 0.95:
            data[at:at] = rng.choice(_SCRAPS)
        else:
            data[at:at] = data[at : at + 64]
    return bytes(data)


def damage_json(raw: bytes, rng: random.Random) -> bytes:
    """A JSON file with something wrong in what it says or in how it is written."""
    kind = rng.random()
    if kind < 0.1:
        return damage_bytes(raw, rng)
    if kind < 0.13:
        depth = rng.choice((50, 200, 900, 5_000, 100_000))
        return b'{"a":' * depth + b"1" + b"}" * depth if rng.random() < 0.5 else b"[" * depth + b"]" * depth
    text = json.dumps(damage_value(json.loads(raw), rng))
    if kind < 0.17:  # the same key twice
        text = text.replace("{", '{"model_type": 1, "model_type": {}, ', 1)
    return text.encode()


def damage_safetensors(raw: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header lies, or whose bytes are damaged."""
    if rng.random() < 0.3:
        return damage_bytes(raw, rng)
    length = int.from_bytes(raw[:8], "little")
    header = damage_json(raw[8 : 8 + length], rng)
    claimed = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**32, 2**63, 2**64 - 1))
    return claimed.to_bytes(8, "little") + header + raw[8 + length :]


def damage_text(raw: bytes, rng: random.Random) -> bytes:
    """A text with pieces of its own and of YAML or Jinja put where they do not belong."""
    text = raw.decode("utf-8", "surrogateescape")
    pieces = (
        *(
            "&a ",
            "*a",
            "<<: *a\n",
            "!!python/object/apply:os.system [id]",
            "!!binary x",
            "? ",
            "- ",
            "[",
            "{",
            "'",
            '"',
        ),
        *(
            "\t",
            "\n",
            "\n---\n",
            "%TAG ! x\n",
            "\x00",
            "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
            "1e999",
        ),
        *(
            "{{ ",
            " }}",
            "{% for m in messages %}",
            "{% endfor %}",
            "{% set x = x ~ x %}",
            "| tojson",
            "~",
            "__class__",
        ),
        *(
            "[" * 200,
            "a: " * 200,
            "9" * 5000,
            "&b [*b, *b]",
            ".inf",
            "-1",
            "null",
            "0x",
            "1_000",
            "2001-01-01",
            *map(str, NAMES),
        ),
    )
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        kind = rng.random()
        if kind < 0.5:
            text = text[:at] + rng.choice(pieces) + text[at + rng.choice((0, 0, 1, 5)) :]
        elif kind < 0.7:
            end = min(len(text), at + rng.randrange(40))
            to = rng.randrange(len(text) + 1)
            text = text[:to] + text[at:end] + text[to:]
        elif kind < 0.85:
            text = text[:at] + text[at + rng.randrange(20) :]
        else:
            text = (
                text[:at]
                + chr(rng.choice((0, 9, 0x85, 0xFEFF, 0x2028, 0x1F600, ord(":"), ord("#"))))
                + text[at:]
            )
    if rng.random() < 0.03:
        text = bomb(rng)
    return text.encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")


def bomb(rng: random.Random) -> str:
    """A short YAML text that stands for a very long one."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, rng.choice((3, 9, 30)))]
    return "\n".join(lines) + "\nmerge_method: linear\nmodels: *a1\n"


#: How files are damaged, by their endings.
BY_ENDING: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": damage_json,
    ".safetensors": damage_safetensors,
    ".yml": damage_text,
    ".jinja": damage_text,
}


def damaged(name: str, raw: bytes, rng: random.Random) -> bytes:
    """The content of a file, damaged in a way that its kind invites."""
    ending = name[name.rindex(".") :] if "." in name else ""
    return BY_ENDING.get(ending, damage_bytes)(raw, rng)
