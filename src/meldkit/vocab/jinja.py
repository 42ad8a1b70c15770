"""Chat templates as Jinja: whether one works, and which tokens it writes."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from meldkit.errors import RecipeError, did_you_mean
from meldkit.vocab import trial

#: Letters of a template's line that a message shows.
_SHOWN = 100
#: Seconds that a template is waited for, which may have to wait itself for others on a busy machine.
_PATIENCE = 60


def check_template(text: str, where: str) -> None:
    """Compile a template as transformers does, and render a short conversation with it.

    What the template refuses by `raise_exception` is its right. It is tried with messages that are texts
    and, if that fails, with messages that are lists of parts, as models of images have them.

    Args:
        text: the template.
        where: where the recipe has it, for messages; may be empty.

    Raises:
        RecipeError: it is not Jinja, uses what there is not, fails, or takes too much memory or time.
    """
    if not is_unicode(text):
        raise RecipeError(
            f"{at(where)}the chat_template: it has half of a surrogate pair, which is no character"
        )
    error = _tried(text)["error"]
    if error is None:
        return
    line, message, unknown, known = error
    hint = _near(unknown, known) if unknown else ""
    lines = re.split("\r\n|\r|\n", text)
    spot = f"line {line} of the chat_template" if line else "the chat_template"
    if line and line <= len(lines):
        hint = f"{hint} ".lstrip() + f"the line is: {_one_line(lines[line - 1])}"
    raise RecipeError(f"{at(where)}{spot}: {message}", hint=hint)


def missing_tokens(text: str, tokens: Collection[str]) -> list[str]:
    """Markers of turns that a template writes out and a tokenizer lacks, in the order of the template.

    A marker is what looks like <|im_start|>, <s>, [INST] or [|user|] in the text between Jinja's brackets, in
    a string inside them, or in what becomes of a short conversation, where pieces are put together.

    Args:
        text: the template.
        tokens: every token of the tokenizer.
    """
    return [marker for marker in _tried(text)["markers"] if marker not in tokens]


@functools.lru_cache(maxsize=64)
def _tried(text: str) -> dict[str, Any]:
    """What `trial.tried` says of a template, in a process that may be stopped."""
    import subprocess

    request = json.dumps({"text": text, "path": sys.path})
    command = [sys.executable, "-I", str(Path(trial.__file__))]
    message = "it takes too much memory or time"
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=_PATIENCE)
        if done.returncode == 0:
            return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        pass
    except OSError as e:
        message = f"it cannot be tried, because {sys.executable} cannot be started: {e.strerror}"
    return {"error": (None, message, None, []), "markers": trial.markers([text])}


def _one_line(text: str) -> str:
    """A line of a template for a message."""
    line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _near(name: str, known: Iterable[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did") else ""


def at(where: str) -> str:
    return f"{where}: " if where else ""


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which only an escape can bring in."""
    return not re.search("[\ud800-\udfff]", text)
