"""Recipes that take models apart layer by layer: shuffled, shortened, deepened; and those of old programs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from meldkit.api import get_method
from meldkit.checkpoint import Checkpoint, open_model
from meldkit.errors import MismatchError, RecipeError
from meldkit.layout import find_part, infer_layout
from meldkit.recipe import ModelRef, Recipe, filter_matches, recipe_from_data
from meldkit.recipe.load import read_plain
from meldkit.recipe.model import GENERATED
from meldkit.recipe.write import to_yaml_text

#: Of each of its layers, that a shuffled model gets from one model: more is a slip of the finger.
_MOST_COPIES = 100
#: A recipe as data, such as YAML gives it.
Data = dict[str, Any]
#: Matrices that write into the residual stream: a block in which they are 0 changes nothing.
_WRITERS = (
    *("o_proj", "out_proj", "c_proj", "down_proj", "w2", "dense_4h_to_h", "fc2", "attention.dense"),
    *("self_attn.dense", "attention.wo", "output_linear"),
)


def depth(model: str) -> int:
    """How many layers a model has.

    Raises:
        MismatchError: they cannot be counted.
        MeldError: as for `open_model`.
    """
    return _depth(_opened(model))


def _opened(model: str) -> Checkpoint:
    return open_model(ModelRef.parse(model), headers_only=True)


def _depth(checkpoint: Checkpoint) -> int:
    part = find_part(infer_layout(checkpoint, checkpoint.config), None, checkpoint.label)
    if part.stack is None:
        raise MismatchError(
            f"model '{checkpoint.label}' has no layers that can be told apart",
            hint="'meldkit inspect' shows what it is made of",
        )
    return part.stack.num_blocks


def shuffled(
    models: Sequence[str], weights: Sequence[float], *, seed: int = 0, any_layer: bool = False
) -> Data:
    """A recipe whose layers come from models drawn at random.

    Args:
        models: of one depth, unless any layer may come anywhere.
        weights: how likely each model is, relative to the others; with `any_layer`, how many layers it gives,
            relative to its own. Equal if none are given.
        seed: of what is drawn.
        any_layer: draw the layer as well, and put all in random order.

    Raises:
        RecipeError: no models, or not a weight for each.
        MismatchError: models of different depths.
    """
    if not models:
        raise RecipeError("there are no models to draw layers from", hint="name them: -m MODEL -m MODEL")
    if weights and len(weights) != len(models):
        raise RecipeError(
            f"{len(models)} models have {len(weights)} weights", hint="give one to each: -w 0.5 -w 0.5"
        )
    if any(not 0 <= weight < math.inf for weight in weights) or (weights and not any(weights)):
        raise RecipeError("weights must be numbers from 0 on, and not all 0", hint="such as -w 0.7 -w 0.3")
    depths = [depth(model) for model in models]
    if any_layer and (most := max(weights, default=1)) > _MOST_COPIES:
        raise RecipeError(
            f"with --full-random, a weight of {most:g} means as many times the layers that the model has",
            hint=f"a weight of 1 gives as many as it has; {_MOST_COPIES} is the most",
        )
    draw = random.Random(seed)
    runs: list[tuple[str, int, int]] = []
    if any_layer:
        for model, count, share in zip(
            models, depths, weights or [1 / len(models)] * len(models), strict=True
        ):
            runs += [(model, layer, layer + 1) for layer in draw.choices(range(count), k=int(count * share))]
        draw.shuffle(runs)
    else:
        if len(set(depths)) > 1:
            listed = ", ".join(f"'{m}' {d}" for m, d in zip(models, depths, strict=True))
            raise MismatchError(
                f"the models have different depths: {listed}", hint="--full-random takes layers from anywhere"
            )
        for layer in range(depths[0]):
            (model,) = draw.choices(models, weights or None)
            if runs and runs[-1][0] == model:
                runs[-1] = (model, runs[-1][1], layer + 1)
            else:
                runs.append((model, layer, layer + 1))
    if not runs:
        raise RecipeError(
            "no layer was drawn", hint="with --full-random, a weight of 1 gives as many as a model has"
        )
    return _stacked(runs)


def shortened(model: str, dropped: Iterable[int]) -> Data:
    """A recipe for a model without some of its layers.

    Args:
        model: as recipes name it.
        dropped: numbers of layers, from 0.

    Raises:
        RecipeError: it has no such layer, or none would be left.
    """
    count = depth(model)
    gone = sorted(set(dropped))
    if outside := [layer for layer in gone if not 0 <= layer < count]:
        raise RecipeError(
            f"'{model}' has no layer {outside[0]}", hint=f"it has {count}, counted from 0 to {count - 1}"
        )
    if len(gone) == count:
        raise RecipeError(f"all {count} layers of '{model}' are dropped", hint="keep one at least")
    edges = [-1, *gone, count]
    runs = [(model, a + 1, b) for a, b in pairwise(edges) if a + 1 < b]
    return _stacked(runs)


def deepened(
    model: str, *, every: int = 0, ranges: Sequence[tuple[int, int]] = (), idle: bool = True
) -> Data:
    """A recipe for a deeper model.

    Args:
        model: as recipes name it.
        every: after each so many layers, the last one again (LLaMA Pro, arXiv:2401.02415).
        ranges: runs of layers one after the other instead, half-open (depth up-scaling, arXiv:2312.15166).
        idle: have repeated layers change nothing, until they are trained: what they write is 0.

    Raises:
        RecipeError: it has no such layers.
        MismatchError: idle layers are wanted, and nothing is known that would make them so.
    """
    opened = _opened(model)
    count = _depth(opened)
    writers = [writer for writer in _WRITERS if any(filter_matches(writer, name) for name in opened)]
    if idle and not writers:
        raise MismatchError(
            f"nothing is known of '{model}' by which repeated layers would change nothing",
            hint="--as-they-are repeats them with their weights",
        )
    if every > count:
        raise RecipeError(f"every {every} layers is never", hint=f"'{model}' has {count}")
    if every:
        ranges = []
        for first in range(0, count, every):
            last = min(first + every, count)
            ranges += [(first, last), (last - 1, last)] if last - first == every else [(first, last)]
    if not ranges:
        raise RecipeError(
            "nothing says what to repeat", hint="such as --every 4, or --layers 0:24 --layers 8:32"
        )
    for first, last in ranges:
        if not 0 <= first < last <= count:
            raise RecipeError(
                f"layers {first}:{last} are not layers of '{model}'",
                hint=f"it has {count}; 0:{count} is all of them",
            )
    seen: set[int] = set()
    slices: list[Data] = []
    for first, last in ranges:
        # Where new ones and repeated ones meet, a run is cut.
        start = first
        for layer in range(first, last):
            if layer + 1 == last or (layer + 1 in seen) != (start in seen):
                zeroed = writers if idle and start in seen else ()
                slices.append(_slice(model, start, layer + 1, zeroed))
                start = layer + 1
        seen |= set(range(first, last))
    return {"merge_method": "passthrough", "slices": slices}


def _stacked(runs: Iterable[tuple[str, int, int]]) -> Data:
    return {"merge_method": "passthrough", "slices": [_slice(*run) for run in runs]}


def _slice(model: str, first: int, last: int, zeroed: Sequence[str] = ()) -> Data:
    source: Data = {"model": model, "layer_range": [first, last]}
    if zeroed:
        scales: list[Data] = [{"filter": name, "value": 0.0} for name in zeroed]
        source["parameters"] = {"scale": [*scales, {"value": 1.0}]}
    return {"sources": [source]}


def parse_layers(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Layers as the command line has them: "7", "0:24" or "0-23"; half-open ranges.

    Raises:
        RecipeError: a text is none of these.
    """
    found: list[tuple[int, int]] = []
    for text in (part for each in texts for part in each.split(",")):
        first, sign, last = text.partition(":") if ":" in text else text.partition("-")
        try:
            start = int(first)
            stop = int(last) + (sign == "-") if sign else start + 1
        except ValueError:
            raise RecipeError(
                f"'{text}' names no layers",
                hint="write 7, 0:24 (the end is left out) or 0-23 (it is not)",
            ) from None
        if stop <= start:
            raise RecipeError(f"'{text}' names no layers", hint="a range begins before it ends, such as 0:24")
        found.append((start, stop))
    return found


def from_bakllama(path: Path) -> tuple[Data, list[str]]:
    """The recipe that a bakllama file stands for, and what it cannot say, in words.

    Raises:
        RecipeError: the file is none.
    """
    data = read_plain(path)
    settings = cast("Mapping[str, Any]", data if isinstance(data, Mapping) else {})
    slices: Any = settings.get("layer_slices")
    if not isinstance(slices, list) or not slices:
        raise RecipeError(
            f"{path} is no bakllama file: it has no 'layer_slices'",
            hint="recipes of mergekit need no conversion; meldkit reads them as they are",
        )
    found: list[Data] = []
    for number, entry in enumerate(cast("list[Any]", slices)):
        try:
            model, start, end = str(entry["model"]), int(entry["start"]), int(entry["end"])
            scale = None if entry.get("scale") is None else float(entry["scale"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RecipeError(
                f"{path}: entry {number} of 'layer_slices' needs a 'model', and 'start' and 'end'; these and "
                "'scale' are numbers",
                hint="such as {model: org/name, start: 0, end: 24}",
            ) from None
        source: Data = {"model": model, "layer_range": [start, end]}
        if scale is not None:
            source["parameters"] = {"scale": [{"filter": "down_proj", "value": scale}, {"value": 1.0}]}
        found.append({"sources": [source]})
    ends = {
        "embedding_source": found[0]["sources"][0]["model"],
        "lm_head_source": found[-1]["sources"][0]["model"],
    }
    notes = [
        f"{key} is '{settings[key]}', but what comes before and after the layers is that of '{model}'"
        for key, model in ends.items()
        if settings.get(key) not in (None, model)
    ]
    return {"merge_method": "passthrough", "slices": found}, notes


def from_legacy(
    models: Sequence[str],
    *,
    method: str = "ties",
    base: str | None = None,
    weights: Sequence[float] = (),
    densities: Sequence[float] = (),
    normalize: bool = True,
    dtype: str | None = None,
) -> Data:
    """The recipe that a command line of mergekit-legacy stands for.

    Args:
        models: to merge.
        method: of the merge.
        base: with which they are compared, if any.
        weights, densities: of each model, or one for all; with slerp, the one weight is t.
        normalize: divide by the sum of the weights.
        dtype: of the output.

    Raises:
        RecipeError: an unknown method, or not as many numbers as models.
    """
    get_method(method)
    entries: list[Data] = [{"model": model} for model in models]
    whole: Data = {}
    if method == "slerp":
        if len(weights) != 1:
            raise RecipeError(
                f"slerp takes one weight, {len(weights)} are given", hint="it is t: 0 is the base"
            )
        whole["t"] = weights[0]
        weights = ()
    else:
        whole["normalize"] = normalize
    for key, numbers in (("weight", weights), ("density", densities)):
        if numbers and len(numbers) not in (1, len(models)):
            raise RecipeError(
                f"{len(models)} models have {len(numbers)} times {key}", hint="give one for all, or each"
            )
        for entry, number in zip(
            entries, numbers if len(numbers) != 1 else [*numbers] * len(models), strict=False
        ):
            entry.setdefault("parameters", {})[key] = number
    recipe: Data = {"merge_method": method}
    if base is not None:
        recipe["base_model"] = base
    recipe |= {"models": entries, "parameters": whole}
    return recipe | ({"dtype": dtype} if dtype else {})


def as_recipe(recipe: Data) -> Recipe:
    """The same as a `Recipe`; nobody is warned of layers that it leaves out."""
    return recipe_from_data(recipe, GENERATED)


def as_text(recipe: Data) -> str:
    """The recipe as YAML."""
    return to_yaml_text(recipe)
