"""Regular expressions of recipes and adapters, which strangers write, in bounded time and memory.

Python's own module may look for `((a+)+)+b` longer than anyone lives, and cannot be stopped. The one that
transformers brings along can.
"""

from __future__ import annotations

import math
import re
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

#: Seconds of computing for one text; real expressions need some millionths.
_SECONDS = 0.1
#: Letters of an expression, those that are repeated counted so often; they are compiled one by one.
_MOST = 10_000
_COUNT = re.compile(r"\{(\d{1,9})")


class ExpressionError(ValueError):
    """An expression that is none, or that is too much; the text goes on after what names it."""


def check_expression(expression: str) -> None:
    """Check that an expression can be looked for.

    Raises:
        ExpressionError: it is not valid, or too large.
    """
    _compiled(expression)


def occurs(expression: str, text: str) -> bool:
    """Whether an expression matches anywhere in a text.

    Raises:
        ExpressionError: it is not valid, or too large, or takes too long.
    """
    try:
        return _compiled(expression).search(text, timeout=_SECONDS) is not None
    except TimeoutError:
        raise ExpressionError(
            f"takes too long to be looked for in '{text}': it repeats what is repeated, as '(a+)+' does"
        ) from None
    except MemoryError:
        raise ExpressionError(f"takes too much memory to be looked for in '{text}'") from None


@lru_cache
def _compiled(expression: str) -> regex.Pattern[str]:
    import regex

    size = len(expression) * math.prod(max(1, int(count)) for count in _COUNT.findall(expression))
    if size > _MOST:
        raise ExpressionError(f"is too large: {size:,} letters with repeats, more than {_MOST:,}")
    try:
        with warnings.catch_warnings():
            # Both warn of expressions that they may read differently one day.
            warnings.simplefilter("ignore", FutureWarning)
            # What both understand means the same to both.
            re.compile(expression)
            return regex.compile(expression)
    except (re.error, regex.error, RecursionError, OverflowError) as e:
        raise ExpressionError(f"is not a valid regular expression: {e}") from None
