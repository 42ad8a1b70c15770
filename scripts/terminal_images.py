"""Draw what commands print on a terminal as SVG, for the documentation.

    python scripts/terminal_images.py [--lines N] IMAGE.svg COMMAND …

The command is run on a terminal of 80 columns, in colour. The image asks for no font from the network.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 80


def printed(command: list[str]) -> str:
    """What a command prints on a terminal, with its colours."""
    ours, its = pty.openpty()
    environment = os.environ | {"COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=subprocess.DEVNULL, env=environment)
    os.close(its)
    text = b""
    try:
        while more := os.read(ours, 1 << 16):
            text += more
    except OSError:
        # How Linux tells that nobody is at the other end any more.
        pass
    if process.wait():
        sys.exit(f"{shlex.join(command)} ended with status {process.returncode}")
    return text.decode().replace("\r\n", "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--lines", type=int, default=48, help="most lines that are drawn")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    lines = printed(options.command).splitlines()
    text = "\n".join([f"$ {shlex.join(options.command)}", *lines[: options.lines]])
    if len(lines) > options.lines:
        text += "\n…"
    with Path(os.devnull).open("w") as nowhere:
        width = max(WIDTH, *(len(line) for line in Text.from_ansi(text).plain.splitlines()))
        console = Console(record=True, width=width, file=nowhere, color_system="truecolor")
        console.print(Text.from_ansi(text), soft_wrap=True)
    svg = console.export_svg(title="", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    options.image.write_text(svg.replace("Fira Code", "DejaVu Sans Mono"), "utf-8")


if __name__ == "__main__":
    main()
