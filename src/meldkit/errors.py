"""Every error a user can meet, with the exit status that the command line gives it.

    MeldError
    ├── RecipeError             2  the recipe or the command line says something that cannot be done
    │   └── NotSupportedError   2  the recipe is understood, but this version cannot do it yet
    ├── OutputError             2  the output folder cannot be used as asked
    ├── InputError              3  the inputs are damaged, missing or do not fit together
    │   ├── CheckpointError     3  a model folder or weight file cannot be read as what it says it is
    │   │   └── FormatError     3  it may well be whole, but is of a kind that is not read
    │   └── MismatchError       3  readable models that cannot be merged with each other
    └── RunError                4  failed while running; the same command continues where it stopped

A message says what was got and where; `hint` says what to do about it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


class MeldError(Exception):
    """Base of all errors that are the user's to act on; shown without a stack trace."""

    exit_status = 4

    def __init__(self, message: str, *, hint: str = "") -> None:
        message = fit_to_print(message)
        super().__init__(message)
        self.message = message
        # Further lines of a hint are indented, which what others wrote cannot make look like a message.
        self.hint = "\n  ".join(map(fit_to_print, hint.split("\n  ")))

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class RecipeError(MeldError, ValueError):
    """The recipe or the command line asks for something that has no meaning."""

    exit_status = 2

    @classmethod
    def of(cls, errors: Iterable[RecipeError]) -> RecipeError:
        """One error that says what several do, each on lines of its own."""
        error = cls("")
        error.message = "\n".join(map(str, errors))
        error.args = (error.message,)
        return error


class NotSupportedError(RecipeError):
    """The recipe is valid, but this version cannot carry it out."""


class OutputError(MeldError):
    """The output folder cannot be used as asked."""

    exit_status = 2


class InputError(MeldError):
    """An input cannot be used."""

    exit_status = 3


class CheckpointError(InputError):
    """A model folder or weight file is missing, damaged or not what its name says."""


class FormatError(CheckpointError):
    """An input of a kind that is known and not read: another format, quantisation or type of adapter."""


class MismatchError(InputError):
    """Models that are readable but do not fit together."""


class RunError(MeldError):
    """The merge failed while running; what is done is kept and the same command continues."""

    exit_status = 4


#: How libraries say that the system gave them no memory, in errors of other kinds. The first is the loader's.
_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "not enough memory")
_NO_THREAD = "can't start new thread"


def out_of_memory(error: BaseException) -> RunError | None:
    """What to tell the user if the system had no memory or thread to give; None if it is something else."""
    text = str(error).casefold()
    if not isinstance(error, MemoryError) and not any(sign in text for sign in (*_NO_MEMORY, _NO_THREAD)):
        return None
    return RunError(
        "the system gives no more threads" if _NO_THREAD in text else "the system gives no more memory",
        hint="raise the limit ('ulimit -v', 'ulimit -u' or the container's) or use fewer threads (-j 1), "
        "and run the same command again",
    )


def is_full(error: BaseException) -> bool:
    """Whether an accelerator had no memory to give; the class of such errors is not always the same."""
    return isinstance(error, RuntimeError) and "out of memory" in str(error).casefold()


#: What nobody should read who is shown a message: access tokens, and who logs in where in an address.
_SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=://)[^/\s@]+(?=@)")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def one_line(text: str) -> str:
    """Text with names in it that others chose, on one line: what is no letter for people to read is escaped.

    Else the name of a file could move the cursor, or look like a line of ours.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def fit_to_print(text: str) -> str:
    """Text that may be shown and stored: without secrets, and on one line.

    Messages repeat what others say, such as the server of a hub, who was sent the token.
    """
    for name in _TOKENS:
        if token := os.environ.get(name, "").strip():
            text = text.replace(token, "***")
    return one_line(_SECRETS.sub("***", text))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest valid name, or all of them when none is near.

    Args:
        name: what the user wrote.
        known: the valid names, in the order they should be listed.
    """
    choices = list(known)
    near = nearest(name, choices)
    return f"did you mean '{near}'?" if near is not None else "known: " + ", ".join(choices)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The valid name that a user may have meant, case aside; None if none is near."""
    folded = {choice.casefold(): choice for choice in reversed(list(known))}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None
