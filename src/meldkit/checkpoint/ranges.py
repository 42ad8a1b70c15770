"""Files on the hub, read by ranges."""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path
from typing import Any

#: Bytes that are asked for at least; ranges begin and end at multiples of it.
BLOCK = 1 << 14
#: Requests that broke off are sent so many times, with twice so many seconds between them, doubled each time.
_TRIES = 4
_WAIT = 0.25
_RANGE = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<size>\d+)")


class NoRangesError(Exception):
    """The server sends files whole or not at all."""


class RemoteFile(io.RawIOBase):
    """A file that a server has; what is read of it is fetched, and laid at the same place of a local file.

    Args:
        url: where it is.
        path: local file to make; it gets the same size, with holes where nothing was read.
        first: how many bytes to fetch at once at the beginning.

    Raises:
        NoRangesError: the server does not send parts of files.
        HfHubHTTPError: or any other of the hub's client.
    """

    def __init__(self, url: str, path: Path, first: int) -> None:
        self._url = url
        self._at = 0
        self._fetched: set[int] = set()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            content, self.size = self._ask(0, -(-first // BLOCK) * BLOCK)
            os.ftruncate(self._fd, self.size)
            self._lay(0, content)
        except BaseException:
            # Not the descriptor alone, which would be closed again with this object.
            self.close()
            raise

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        stop = self.size if size < 0 else min(self._at + size, self.size)
        if stop <= self._at:
            return b""
        self.fetch(self._at, stop)
        data = os.pread(self._fd, stop - self._at, self._at)
        self._at += len(data)
        return data

    def fetch(self, start: int, stop: int) -> None:
        """Have the bytes from `start` to `stop`."""
        missing = [n for n in range(start // BLOCK, -(-stop // BLOCK)) if n not in self._fetched]
        while missing:
            run = [n for place, n in enumerate(missing) if n == missing[0] + place]
            first = run[0] * BLOCK
            content, _ = self._ask(first, min((run[-1] + 1) * BLOCK, self.size))
            self._lay(first, content)
            missing = missing[len(run) :]

    def lay(self, offset: int, content: bytes) -> None:
        """Put bytes into the local file that were not fetched."""
        os.pwrite(self._fd, content, offset)

    def _lay(self, start: int, content: bytes) -> None:
        done = 0
        while done < len(content):
            done += os.pwrite(self._fd, content[done:], start + done)
        self._fetched.update(range(start // BLOCK, -(-(start + len(content)) // BLOCK)))

    def _ask(self, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes from `start` to `stop` or the end, and the size of the file."""
        tries = 0
        while True:
            try:
                return _ask(self._url, start, stop)
            except Exception as e:  # clients of the hub differ in the libraries whose errors they let out
                tries += 1
                if tries == _TRIES or not _passing(e):
                    raise
            time.sleep(_WAIT * 2**tries)


def _ask(url: str, start: int, stop: int) -> tuple[bytes, int]:
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        build_hf_headers,  # pyright: ignore[reportUnknownVariableType]
        get_session,
        hf_raise_for_status,
    )

    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # Not all at once: a server that takes no heed of ranges would send all of it.
    if callable(getattr(session, "stream", None)):
        response = session.stream("GET", url, headers=headers, timeout=timeout)
    else:  # before version 1 of the client
        response = session.get(url, headers=headers, timeout=timeout, stream=True)
    with response as answer:
        where = str(answer.headers.get("Content-Range", ""))
        if answer.status_code == 416 and where == "bytes */0":
            return b"", 0
        hf_raise_for_status(answer)
        match = _RANGE.fullmatch(where)
        if answer.status_code != 206 or match is None or int(match["first"]) != start:
            raise NoRangesError
        content: bytes = answer.read() if callable(getattr(answer, "read", None)) else answer.content
        size = int(match["size"])
        if len(content) != min(stop, size) - start:
            raise ConnectionError(f"{url} sent {len(content):,} bytes of {stop - start:,}")
        return content, size


def _passing(error: Exception) -> bool:
    """Whether the same request may well be answered in a moment."""
    if isinstance(error, NoRangesError):
        return False
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return True
    status: int = getattr(error.response, "status_code", 0)
    return status in (408, 429) or status >= 500
