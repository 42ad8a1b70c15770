"""A program that plans and merges in folders, and tells which paths it opened, made, moved or removed.

One JSON object comes in: {"cases": [[folder, recipe], ...], "allowed": [folder, ...]}. One list goes out,
of [folder, outcome, [paths outside of the folder and of what is allowed]].
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

EVENTS = {
    "open": (0,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.rename": (0, 1),
    "os.link": (0, 1),
    "os.symlink": (0, 1),
    "os.truncate": (0,),
    "os.listdir": (0,),
    "os.scandir": (0,),
    "os.chmod": (0,),
    "os.utime": (0,),
}
#: Nobody may do these.
NEVER = ("os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class", "ctypes.dlopen")
#: What Python, torch and the system's own libraries look at.
SYSTEM = ("/proc", "/sys", "/dev/null", "/dev/urandom", "/etc/mime.types", "/usr/share/zoneinfo", "/usr/lib")


def main() -> None:
    request = json.load(sys.stdin)
    allowed = [
        os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, *sys.path, *request["allowed"]) if p
    ]
    seen: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        seen.extend(f"{event}: {arguments}" for each in NEVER if event == each)
        for position in EVENTS.get(event, ()):
            path = arguments[position]
            if isinstance(path, bytes | str | os.PathLike):
                # Where the path leads, whether or not there is anything.
                seen.append(os.path.realpath(os.fsdecode(path)))

    from meldkit.api import merge, plan
    from meldkit.errors import MeldError

    warnings.simplefilter("ignore")
    sys.addaudithook(hook)
    results: list[tuple[str, str, list[str]]] = []
    for folder, recipe in request["cases"]:
        os.chdir(folder)
        seen.clear()
        try:
            plan(recipe)
            merge(recipe, "out")
            outcome = "merged"
        except MeldError as e:
            outcome = str(e)
        inside = (os.path.realpath(folder), *allowed)
        outside = [
            path
            for path in dict.fromkeys(seen)
            if not path.startswith(SYSTEM) and not any(Path(path).is_relative_to(root) for root in inside)
        ]
        results.append((folder, outcome, outside))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
