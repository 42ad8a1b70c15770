"""The type checker of the tests: shapes, dtypes and types of every annotated argument."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

#: As everywhere in typing, an int will do where a float is expected.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
