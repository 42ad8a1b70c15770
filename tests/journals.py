"""Journals written by hand."""

from __future__ import annotations

import json
import zlib


def lines(*entries: object, after: bytes = b"") -> bytes:
    """Entries as a journal holds them.

    Args:
        entries: JSON data, or JSON text.
        after: what the journal holds already.
    """
    data = after
    for entry in entries:
        text = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
        data += b"%08x %s\n" % (zlib.crc32(text, zlib.crc32(data)), text)
    return data[len(after) :]
