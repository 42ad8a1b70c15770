"""From what an output says it was made of to the plan that makes it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar, cast, get_type_hints

from meldkit.api import plan, read_recipe
from meldkit.checkpoint import Locate
from meldkit.errors import NotSupportedError, RecipeError
from meldkit.options import MergeOptions
from meldkit.output import RECIPE
from meldkit.plan import Plan
from meldkit.recipe import ModelRef, Recipe, mentions
from meldkit.recipe.load import read_plain

T = TypeVar("T")

#: Called with how many steps of planning are done, of how many, and what is next.
Steps = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was wanted of a tool.

    Attributes:
        refs: every model that it names.
        plan: plans the same again, with options, where models are now, and what is called meanwhile.
    """

    refs: Sequence[ModelRef]
    plan: Callable[[MergeOptions, Locate, Steps | None], Plan]


def read_wanted(folder: Path, tool: str) -> Wanted:
    """What an output was made of.

    Args:
        folder: of the output.
        tool: that made it.

    Raises:
        RecipeError: the file that says it cannot be read, or says something else.
        NotSupportedError: the tool is not known here.
    """
    read = _TOOLS.get(tool)
    if read is None:
        raise NotSupportedError(
            f"{folder} was made by 'meldkit {tool}', which this version does not know",
            hint="use the version of meldkit that made it",
        )
    return read(folder / RECIPE)


def _merge(file: Path) -> Wanted:
    recipe = read_recipe(file)
    return Wanted(list(_mentioned(recipe)), lambda options, locate, _: plan(recipe, options, locate=locate))


def _mentioned(recipe: Recipe) -> Iterator[ModelRef]:
    """The models of a recipe and its stages, those that only give tokens included."""
    for part in (recipe, *recipe.stages.values()):
        for ref in mentions(part):
            stage = recipe.stage_of(ref) is not None
            yield from (ModelRef(a.path) for a in ref.adapters) if stage else (ref,)


def _moe(file: Path) -> Wanted:
    from meldkit.tools.moe.config import load_mixture
    from meldkit.tools.moe.make import plan_mixture

    mixture, text = load_mixture(file)
    beside = file.absolute().parent.parent

    def again(options: MergeOptions, locate: Locate, steps: Steps | None) -> Plan:
        def read(done: int, total: int) -> None:
            if steps is not None:
                steps(done, total, "reading prompts")

        return plan_mixture(mixture, text, options, work=beside, progress=read, locate=locate).plan

    return Wanted(mixture.models(), again)


def _extract_lora(file: Path) -> Wanted:
    from meldkit.tools.lora.extract import plan_extraction
    from meldkit.tools.lora.wanted import Extraction

    wanted = _read_as(Extraction, file)
    return Wanted(
        (wanted.base, wanted.model),
        lambda options, locate, steps: plan_extraction(wanted, options, progress=steps, locate=locate).plan,
    )


def _tokensurgeon(file: Path) -> Wanted:
    from meldkit.tools.transplant.plan import plan_transplant
    from meldkit.tools.transplant.wanted import Transplant

    wanted = _read_as(Transplant, file)
    return Wanted(
        (wanted.model, wanted.donor),
        lambda options, locate, steps: plan_transplant(wanted, options, progress=steps, locate=locate).plan,
    )


_TOOLS: dict[str, Callable[[Path], Wanted]] = {
    "merge": _merge,
    "moe": _moe,
    "extract-lora": _extract_lora,
    "tokensurgeon": _tokensurgeon,
}


def _read_as(kind: type[T], file: Path) -> T:
    """What was asked of a tool, from the text that it made of that.

    Raises:
        RecipeError: the file says something else.
    """
    from pydantic import TypeAdapter, ValidationError

    data = read_plain(file)
    known = {field.name for field in fields(cast("type", kind))}
    if not isinstance(data, dict) or not data.keys() <= known:
        raise RecipeError(f"{file} does not say what was asked for", hint="get it again; it was edited")
    hints = get_type_hints(kind)
    values = {
        name: ModelRef.from_value(value, f"{file}: {name}") if hints[name] is ModelRef else value
        for name, value in cast("dict[str, object]", data).items()
    }
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{file}: {place}: {first['msg']}", hint="get it again; it was edited") from None
