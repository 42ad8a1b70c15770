"""The tree of errors in the documentation is the one in the code."""

from __future__ import annotations

import re

from meldkit import errors
from meldkit.errors import MeldError


def test_the_tree_is_as_it_is_drawn() -> None:
    drawn: list[type[MeldError]] = []
    path: list[type[MeldError]] = []
    for bars, name, status in re.findall(r"^    ([│├└─ ]*)(\w+Error) *(\d?)", errors.__doc__ or "", re.M):
        kind = getattr(errors, name)
        del path[len(bars) // 4 :]
        assert kind.__bases__[0] is (path[-1] if path else Exception)
        if status:
            assert kind.exit_status == int(status)
        path.append(kind)
        drawn.append(kind)
    known = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, MeldError)]
    assert set(drawn) == set(known)
    assert len(drawn) == len(known)
