"""Whether a model still works: it reads and writes a little, and so do the models that it was made of.

This finds broken models, not good ones; how good one is only an evaluation on the task at hand can tell.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meldkit.api import devices_of
from meldkit.errors import InputError, MeldError
from meldkit.options import MergeOptions
from meldkit.recipe import ModelRef
from meldkit.report.run_model import Reading, as_folder, read

#: A merge whose perplexity is more than this times the worst input's is warned of. Merges of fine-tunes that
#: work stay near their inputs or below the worst; those that do not are off by orders of magnitude.
MAX_PERPLEXITY = 2.0
#: Greedy continuations of small models repeat themselves even if nothing is wrong: warned of are those that
#: do so in most of what they write, and much more than any input.
MAX_REPETITION, MORE_REPETITION = 0.5, 0.25
#: Least cosine of an encoder's embeddings with those of its nearest input.
MIN_COSINE = 0.5


@dataclass(frozen=True, slots=True)
class ModelRun:
    """What one model did.

    Attributes:
        label: the model as the recipe names it.
        perplexity: by passage, per token of the tested model's tokenizer, so that models with different
            tokenizers compare. Infinity or NaN if the model computes such. Empty for encoders.
        agreement: share of tokens that the tested model finds likeliest too, 0 to 1; None for itself, and
            where tokenizers cut the passages differently.
        repetition: share of 4-grams of its greedy continuations that were there before, 0 to 1.
        cosine: of an encoder's embeddings with the tested model's, the mean over passages; else None.
        continuations: what it wrote, by passage.
        failure: why it could not be run; "" if it could.
    """

    label: str
    perplexity: Mapping[str, float]
    agreement: float | None
    repetition: float | None
    cosine: float | None
    continuations: Mapping[str, str]
    failure: str = ""

    def data(self) -> dict[str, Any]:
        """As JSON has it; it knows no NaN and no infinity."""
        return {
            "model": self.label,
            "perplexity": {k: v if math.isfinite(v) else None for k, v in self.perplexity.items()},
            "agreement": self.agreement,
            "repetition": self.repetition,
            "cosine": self.cosine if self.cosine is None or math.isfinite(self.cosine) else None,
            "continuations": dict(self.continuations),
            "failure": self.failure or None,
        }


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """What a model did beside the models that it was made of.

    Attributes:
        tested: the model in question.
        inputs: the others, in order; empty if the tested one could not be run.
        warnings: in what the tested model is much worse than all inputs, as sentences.
    """

    tested: ModelRun
    inputs: tuple[ModelRun, ...]
    warnings: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "tested": self.tested.data(),
            "inputs": [run.data() for run in self.inputs],
            "warnings": list(self.warnings),
        }


def smoke(
    model: str | os.PathLike[str] | ModelRef,
    inputs: Sequence[str | os.PathLike[str] | ModelRef],
    work: str | os.PathLike[str],
    options: MergeOptions | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> SmokeTest:
    """Run a model and the models that it was made of, one after the other.

    Args:
        model: the one in question, as recipes name it, or the path of a folder.
        inputs: what it was made of, or is to be compared with.
        work: a folder with room for one model; what is put there is taken away again.
        options: `device` or `cuda` say where to compute (on the CPU if neither does); `transformers_cache`
            and `trust_remote_code` are honoured.
        progress: called with how many models are done, of how many, and which is next.

    Raises:
        RecipeError: there is no such device.
        InputError: an input cannot be opened. What cannot be run is part of the answer.
    """
    options = options or MergeOptions()
    device = devices_of(options)[0].name
    settings = MergeOptions(
        transformers_cache=options.transformers_cache,
        trust_remote_code=options.trust_remote_code,
        write_model_card=False,
    )
    refs = [ModelRef.from_value(given) for given in (model, *inputs)]
    labels = list(map(str, refs))

    def run(place: int) -> Reading | str:
        if progress is not None:
            progress(place, len(refs), labels[place])
        try:
            with as_folder(refs[place], Path(work), settings) as folder:
                return read(folder, device, trust_remote_code=options.trust_remote_code)
        except InputError:
            raise
        except MeldError as e:
            return e.message

    tested = run(0)
    if isinstance(tested, str):
        failed = ModelRun(labels[0], {}, None, None, None, {}, tested)
        return SmokeTest(failed, (), (f"{labels[0]} was not run: {tested}",))
    readings = [run(place) for place in range(1, len(refs))]
    if progress is not None:
        progress(len(refs), len(refs), "")
    own = _compared(labels[0], tested, None)
    others = [_other(label, found, tested) for label, found in zip(labels[1:], readings, strict=True)]
    return SmokeTest(own, tuple(others), tuple(_warnings(own, others, tested)))


def _other(label: str, found: Reading | str, tested: Reading) -> ModelRun:
    """An input beside the tested model, or why it is not."""
    if not isinstance(found, str) and bool(found.embeddings) != bool(tested.embeddings):
        found = "an encoder and a model that writes texts have no numbers in common"
    return (
        ModelRun(label, {}, None, None, None, {}, found)
        if isinstance(found, str)
        else _compared(label, found, tested)
    )


def _compared(label: str, reading: Reading, tested: Reading | None) -> ModelRun:
    """A model's numbers, beside those of the tested one (None for itself)."""
    counted = tested or reading
    cosine = None
    if tested is not None and reading.embeddings:
        each = [_dot(v, tested.embeddings[name]) for name, v in reading.embeddings.items()]
        cosine = sum(each) / len(each)
    return ModelRun(
        label=label,
        perplexity={
            name: _exp(loss / max(1, counted.num_tokens[name])) for name, loss in reading.loss.items()
        },
        agreement=None if tested is None else _agreement(reading, tested),
        repetition=None if reading.embeddings else reading.repetition,
        cosine=cosine,
        continuations=reading.continuations,
    )


def _agreement(one: Reading, other: Reading) -> float | None:
    if not one.tokens or one.tokens != other.tokens:
        return None
    pairs = [pair for name in one.tops for pair in zip(one.tops[name], other.tops[name], strict=True)]
    return sum(a == b for a, b in pairs) / max(1, len(pairs))


def _warnings(tested: ModelRun, inputs: Sequence[ModelRun], reading: Reading) -> Iterator[str]:
    label = tested.label
    if reading.made_up:
        yield (
            f"{label} lacks weights that its architecture has, such as {reading.made_up[0]}; "
            "transformers draws them at random"
        )
    others = [run for run in inputs if not run.failure]
    for name, value in tested.perplexity.items():
        known = [run.perplexity[name] for run in others if math.isfinite(run.perplexity.get(name, math.nan))]
        if not math.isfinite(value):
            yield f"{label} computes NaN or Inf on the passage '{name}'"
        elif known and value > MAX_PERPLEXITY * max(known):
            yield (
                f"{label} has perplexity {value:,.4g} on the passage '{name}', "
                f"its worst input {max(known):,.4g}"
            )
    repeated = [run.repetition for run in others if run.repetition is not None]
    if (
        tested.repetition is not None
        and repeated
        and tested.repetition > max(MAX_REPETITION, max(repeated) + MORE_REPETITION)
    ):
        yield f"{label} repeats itself: {tested.repetition:.0%} of what it writes, inputs {max(repeated):.0%}"
    cosines = [run.cosine for run in others if run.cosine is not None]
    # Of NaN every comparison is false.
    if cosines and not max(cosines) >= MIN_COSINE:
        yield f"{label} embeds the passages unlike any input; the nearest has cosine {max(cosines):.2f}"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=False))
