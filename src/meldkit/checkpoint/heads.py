"""What of a weight file planning looks at, fetched without the rest."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, cast

from meldkit.checkpoint.pickled import LOCAL_HEADER_BYTES, local_header
from meldkit.checkpoint.ranges import RemoteFile
from meldkit.checkpoint.safetensors import MAX_HEADER_BYTES
from meldkit.checkpoint.weights import PICKLED

#: Bytes fetched at once at the beginning of a file of which nothing is known.
FIRST = 1 << 16
#: Bytes fetched at once at the end of a zip archive, where its table of contents stands.
_LAST = 1 << 16


def fetch_head(remote: RemoteFile, path: Path) -> bool:
    """Read all of a file that planning will, by the format that its ending names.

    Whatever is wrong with it is said when it is opened.

    Args:
        remote: the file.
        path: with its name.

    Returns:
        Whether that is all; else it takes the whole file to plan.
    """
    if path.suffix == ".safetensors":
        length = int.from_bytes(remote.read(8), "little")
        if length <= MAX_HEADER_BYTES:
            remote.read(length)
        return True
    if path.suffix == ".gguf":
        from meldkit.checkpoint.gguf import fetch_contents

        fetch_contents(remote, path)
        return True
    return path.suffix in PICKLED and _fetch_zip(remote)


def _fetch_zip(remote: RemoteFile) -> bool:
    """The table of contents and `data.pkl`; before each member's bytes stands its name once more.

    Those names are not fetched, for there are as many as there are tensors. They are written as the table has
    them, so that members begin somewhat earlier than they really do.
    """
    if remote.read(4) != b"PK\x03\x04":
        return False
    remote.fetch(max(0, remote.size - _LAST), remote.size)
    try:
        infos = zipfile.ZipFile(cast("IO[bytes]", remote)).infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError):
        return True  # whoever reads the stand-in says what is wrong with it
    for info in infos:
        offset = info.header_offset
        if info.filename.endswith(("/data.pkl", "/byteorder")):
            remote.seek(offset)
            lengths = remote.read(LOCAL_HEADER_BYTES)[26:]
            if len(lengths) == 4:
                remote.read(sum(struct.unpack("<HH", lengths)) + info.file_size)
        elif offset + LOCAL_HEADER_BYTES < remote.size:
            remote.lay(offset, local_header(info))
    return True
