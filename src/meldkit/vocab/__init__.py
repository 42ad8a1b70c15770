"""Tokenizers: whose the output gets, and which row of which embedding belongs to which of its tokens.

What brings vocabularies together is imported by who does that: `align` and `union`.
"""

from __future__ import annotations

from meldkit.vocab.compare import Difference, compare, counted
from meldkit.vocab.jinja import check_template, is_unicode, missing_tokens
from meldkit.vocab.output import (
    FILES,
    GENERATION,
    OutputTokenizer,
    copy_tokenizer,
    with_num_tokens,
    without_row,
    write_generation_settings,
    write_output_tokenizer,
)
from meldkit.vocab.pieces import pieces
from meldkit.vocab.rows import AlignedRows, MeanRow, RowMap
from meldkit.vocab.spelling import NO_TEXT, byte_tokens, bytes_of, in_spelling, meanings, other_spellings
from meldkit.vocab.templates import (
    AUTO,
    PRESETS,
    ChatTemplates,
    choose_templates,
    ends_of,
    read_templates,
    write_templates,
)
from meldkit.vocab.tokenizer import (
    FAST,
    Tokenizer,
    added_beside,
    read_tokenizer,
    special_tokens,
    tokenizer_files,
    tokenizer_of_folder,
)

__all__ = [
    "AUTO",
    "FAST",
    "FILES",
    "GENERATION",
    "NO_TEXT",
    "PRESETS",
    "AlignedRows",
    "ChatTemplates",
    "Difference",
    "MeanRow",
    "OutputTokenizer",
    "RowMap",
    "Tokenizer",
    "added_beside",
    "byte_tokens",
    "bytes_of",
    "check_template",
    "choose_templates",
    "compare",
    "copy_tokenizer",
    "counted",
    "ends_of",
    "in_spelling",
    "is_unicode",
    "meanings",
    "missing_tokens",
    "other_spellings",
    "pieces",
    "read_templates",
    "read_tokenizer",
    "special_tokens",
    "tokenizer_files",
    "tokenizer_of_folder",
    "with_num_tokens",
    "without_row",
    "write_generation_settings",
    "write_output_tokenizer",
    "write_templates",
]
