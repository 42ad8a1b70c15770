"""From a model and the tokenizer of another to a plan that writes the one with the other."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meldkit.checkpoint import Locate, open_files, read_json
from meldkit.composed import plan_of
from meldkit.options import MergeOptions
from meldkit.plan import Composed, OtherVocabulary, Plan, Tool
from meldkit.plan.tables import lint_rows, num_tokens
from meldkit.tools.transplant.side import Side, open_side
from meldkit.tools.transplant.surgery import NewTable, Progress, Surgery
from meldkit.tools.transplant.wanted import Transplant, check, idle
from meldkit.vocab import GENERATION, OutputTokenizer


@dataclass(frozen=True, slots=True)
class PlannedTransplant:
    """A model about to be written with another tokenizer.

    Attributes:
        plan: that writes it.
        tables: those with a row per token.
        num_tokens: of the donor's tokenizer.
    """

    plan: Plan
    tables: tuple[NewTable, ...]
    num_tokens: int


def plan_transplant(
    wanted: Transplant,
    options: MergeOptions | None = None,
    *,
    progress: Progress | None = None,
    locate: Locate | None = None,
) -> PlannedTransplant:
    """Find out how the rows of the donor's tokens are made; they are, when they are written.

    Args:
        wanted: what is to be done.
        options: as for `merge`; what is large is computed on `options.wanted_device()`.
        progress: called while rows are approximated.
        locate: where the models are now, if they lay elsewhere.

    Raises:
        RecipeError: numbers that make no sense.
        MismatchError: a model without tokenizer or embedding.
        MeldError: see `meldkit.errors`.
    """
    options = options or MergeOptions()
    check(wanted)
    options.shard_bytes()  # raises if it makes no sense, before the work
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    model, donor = (open_side(ref, cache, options, locate) for ref in (wanted.model, wanted.donor))
    lint = [warning for side in (model, donor) for warning in lint_rows(side.model, side.tokenizer)]
    with open_files() as files:
        surgery = Surgery(wanted, options, model, donor, files, progress)
        tensors, tables = surgery.tables()
    output, size = _output_tokenizer(model, donor), surgery.size
    content = (wanted, model.checkpoint.fingerprint, donor.checkpoint.fingerprint, surgery.digests)
    same, made = tables[0].exact, tables[0].made
    made_of = Composed(
        label=str(wanted.model),
        folder=model.checkpoint.folder,
        tensors={**model.checkpoint.tensors, **tensors},
        config=model.checkpoint.config,
        tokenizer=None,
        adapters=(),
        fingerprint=hashlib.sha256(repr(content).encode()).hexdigest(),
        parts=model.checkpoint.parts,
        notes=model.checkpoint.notes,
        warnings=(*idle(wanted), *model.checkpoint.warnings, *lint, *surgery.warnings),
        inputs=(model.checkpoint, donor.checkpoint),
        gguf=model.checkpoint.gguf,
        vocabulary=OtherVocabulary(output, tuple(num_tokens(model.model)), size),
    )
    summary = (
        f"{wanted.model} with the {len(donor.tokenizer.tokens):,} tokens of {wanted.donor}: "
        f"{same:,} are the same, {made:,} are made by {wanted.method}"
    )
    plan = plan_of(made_of, Tool("tokensurgeon", wanted.text(), summary), options)
    return PlannedTransplant(plan, tuple(tables), len(donor.tokenizer.tokens))


def _output_tokenizer(model: Side, donor: Side) -> OutputTokenizer:
    folder = donor.checkpoint.tokenizer or donor.checkpoint.folder
    path = folder / GENERATION
    return OutputTokenizer(
        source=donor.tokenizer,
        folder=folder,
        gguf=donor.checkpoint.gguf,
        donor=model.tokenizer,
        settings=donor.checkpoint.config,
        generation=read_json(path) if path.is_file() else {},
    )


def as_data(planned: PlannedTransplant) -> dict[str, Any]:
    """What became of the tables, for JSON."""
    return {
        "tokens": planned.num_tokens,
        "tables": [asdict(table) for table in planned.tables],
    }
