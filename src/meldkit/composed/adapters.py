"""Adapters merged into an adapter, without the model that they were trained on.

An adapter adds s · B A to a matrix. What is merged are these products: averaging A and B by themselves would
bring in products of one adapter's A with another's B. A sum of products is again a product, of the A below
each other and the B side by side, which is exact; everything else has its largest singular values kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import (
    BY_TORCH_NAME,
    DTYPES,
    Checkpoint,
    TensorInfo,
)
from meldkit.checkpoint.adapter import PREFIX, LoneAdapter, open_alone, weights_file
from meldkit.checkpoint.rearranged import Matrix, joined, transposed
from meldkit.composed.factors import Factor
from meldkit.composed.tensors import Altered, altered, cast_to, zeros
from meldkit.composed.write import plan_of_adapter
from meldkit.engine import as_stage
from meldkit.errors import FormatError, MismatchError, RecipeError
from meldkit.methods import get_method
from meldkit.methods.linear import normalized
from meldkit.options import MergeOptions
from meldkit.plan import Plan, TensorJob, Tool, build_plan
from meldkit.recipe import ADAPTER_METHODS, ModelRef, Recipe, Setting

#: The parameter that says how many singular values are kept.
_RANK = "rank"
#: Methods that add up products, each times a number: the ranks of sums add up at most.
_SUMS = ("linear", "task_arithmetic")
#: What task vectors are taken from where a method wants a base.
_NOTHING = ModelRef("nothing")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A recipe of adapters, as a recipe of their products.

    Attributes:
        recipe: that merges the products.
        rank: of the result; None for as much as it takes, or the usual.
        exact: whether the result is the sum itself.
    """

    recipe: Recipe
    rank: int | None
    exact: bool


def plan_adapters(recipe: Recipe, folders: Sequence[Path], options: MergeOptions) -> Plan:
    """Decide how an adapter is made of others.

    Args:
        recipe: that merges them.
        folders: of the adapters, in the order of its models; see `meldkit.plan.adapter_folders`.
        options: as for `plan`.

    Raises:
        RecipeError: the recipe cannot be carried out.
        MismatchError: adapters of different models.
        FormatError: adapters that do more than adding products to matrices.
    """
    wanted = _wanted(recipe)
    refs = recipe.models()
    adapters = {ref: open_alone(folder) for ref, folder in zip(refs, folders, strict=True)}
    warnings = list(_check_together(adapters, wanted))
    if recipe.tokenizer is not None or recipe.chat_template is not None:
        warnings.append("tokenizer and chat_template have no effect: adapters are merged, not models")
    checkpoints = {ref: _products(str(ref), adapter, adapters) for ref, adapter in adapters.items()}
    if wanted.recipe.base_model == _NOTHING:
        first = next(iter(checkpoints.values()))
        settings_file = folders[0] / "adapter_config.json"
        empty = {name: zeros(name, info.shape, settings_file) for name, info in first.tensors.items()}
        checkpoints[_NOTHING] = replace(first, label="nothing", tensors=empty)
    merged = build_plan(wanted.recipe, checkpoints.__getitem__, seed=options.random_seed or 0)
    made = as_stage("products", merged)
    tensors: dict[str, TensorInfo] = {}
    ranks: dict[str, int] = {}
    jobs = {job.name: job for job in merged.jobs}
    dtype = _dtype(recipe, adapters)
    # svd is given a sum, whose rank is theirs together at most; what others make may have any.
    all_ranks = [max(f.rank for f in adapter.modules.values()) for adapter in adapters.values()]
    usual = max(all_ranks) if recipe.merge_method == "svd" else sum(all_ranks)
    lossy = False
    for module in _modules(adapters):
        name = f"{module}.weight"
        if wanted.exact:
            sides = _summed(module, jobs[name], list(wanted.recipe.models()), adapters, dtype)
        else:
            most = _most(module, adapters, wanted.recipe.merge_method)
            lossy = lossy or (wanted.rank or usual) < most
            sides = _decomposed(module, made[name], min(wanted.rank or usual, most), adapters, dtype)
        ranks[module] = sides[0].shape[0]
        tensors |= {info.name: info for info in sides}
    saved = _saved(adapters)
    for name in saved:
        # As the first adapter calls it, which may have more in its name than the model.
        whole = next(adapter.saved[name].name for adapter in adapters.values() if name in adapter.saved)
        tensors[whole] = cast_to(dtype, replace(made[name], name=whole))
    settings = _settings(adapters, ranks)
    how = "their sum, exactly" if wanted.exact else f"by {recipe.merge_method}, its largest singular values"
    if lossy:
        warnings.append(
            f"of each module the {max(ranks.values())} largest singular values are kept, and the rest is "
            "lost; 'rank' under 'parameters' keeps more"
        )
    summary = f"an adapter of rank {_ranks(ranks)} of {len(adapters)} adapters: {how}"
    return plan_of_adapter(
        tensors,
        settings,
        (made,),
        Tool("merge", recipe.to_yaml(), summary),
        options,
        content=(recipe.merge_method, wanted.rank, wanted.exact, dtype),
        warnings=(*merged.warnings, *warnings),
        tokenizer=_tokenizer(adapters, saved),
    )


def _tokenizer(adapters: Mapping[ModelRef, LoneAdapter], saved: Sequence[str]) -> Path | None:
    """The folder of an adapter's own tokenizer, where adapters bring whole embeddings."""
    folders = [adapter.folder for adapter in adapters.values()]
    known = (folder for folder in folders if (folder / "tokenizer_config.json").is_file())
    return next(known, None) if any("embed" in name for name in saved) else None


def _ranks(ranks: Mapping[str, int]) -> str:
    least, most = min(ranks.values()), max(ranks.values())
    return str(most) if least == most else f"{least} to {most}"


def _wanted(recipe: Recipe) -> _Wanted:
    parameters = dict(recipe.parameters)
    setting = parameters.pop(_RANK, None)
    rank = None
    if setting is not None:
        value = setting.value
        if not isinstance(value, float | int) or isinstance(value, bool) or value < 1 or value % 1:
            raise RecipeError(
                f"{setting.where + ': ' if setting.where else ''}rank is {value!r}", hint="such as 32"
            )
        rank = int(value)
    method = recipe.merge_method
    if method == "cat" and rank is not None:
        raise RecipeError(
            "merge_method 'cat' keeps every adapter whole, so that ranks add up; rank has no effect",
            hint="use svd to bring the sum to a rank",
        )
    inner = "linear" if method in ADAPTER_METHODS else method
    if method in ADAPTER_METHODS:
        parameters.setdefault("normalize", Setting(value=False))
    base = recipe.base_model
    place = recipe.lines.get("merge_method", recipe.origin)
    if get_method(inner, place, others=ADAPTER_METHODS).base.required and base is None:
        base = _NOTHING
    within = replace(
        recipe,
        merge_method=inner,
        parameters=parameters,
        base_model=base,
        dtype=None,
        out_dtype=None,
        tokenizer=None,
        chat_template=None,
    )
    return _Wanted(within, rank, exact=inner == "linear" and rank is None and method != "svd")


def _modules(adapters: Mapping[ModelRef, LoneAdapter]) -> list[str]:
    """Modules that any of them changes, in the order in which they are met."""
    return list(dict.fromkeys(module for adapter in adapters.values() for module in adapter.modules))


def _saved(adapters: Mapping[ModelRef, LoneAdapter]) -> list[str]:
    return list(dict.fromkeys(name for adapter in adapters.values() for name in adapter.saved))


def _check_together(adapters: Mapping[ModelRef, LoneAdapter], wanted: _Wanted) -> Iterator[str]:
    """Warnings about adapters of different models.

    Raises:
        MismatchError: they do not fit together.
        FormatError: tensors that cannot be merged in this way.
    """
    (first, one), *others = adapters.items()
    for ref, adapter in others:
        for key in ("base_model_name_or_path", "fan_in_fan_out"):
            ours, theirs = (known.settings.get(key) for known in (one, adapter))
            if (ours or "") != (theirs or ""):
                yield f"'{first}' and '{ref}' differ in {key}: {ours!r} and {theirs!r}; the former is taken"
    shapes: dict[str, tuple[ModelRef, Any]] = {}
    for ref, adapter in adapters.items():
        own = {m: (f.shape, f.embedding) for m, f in adapter.modules.items()}
        own |= {name: (info.shape, False) for name, info in adapter.saved.items()}
        for name, shape in own.items():
            known, theirs = shapes.setdefault(name, (ref, shape))
            if theirs != shape:
                raise MismatchError(
                    f"{name} is {list(theirs[0])} for '{known}' and {list(shape[0])} for '{ref}'",
                    hint="the adapters were trained on different models",
                )
    shared = [m for m in _modules(adapters) if sum(m in a.modules for a in adapters.values()) > 1]
    if len(adapters) > 1 and not shared:
        yield "the adapters have no module in common; are their models named alike?"
    for name in _saved(adapters):
        having = next(ref for ref, adapter in adapters.items() if name in adapter.saved)
        lacking = [ref for ref, adapter in adapters.items() if name not in adapter.saved]
        if lacking or wanted.recipe.merge_method != "linear" or not _is_average(wanted.recipe):
            why = f", which '{lacking[0]}' has not" if lacking else ""
            raise FormatError(
                f"not supported: adapter '{having}' brings {name} as a whole{why}; only linear averages such "
                "tensors, if all adapters have them",
                hint="merge models: write each as BASE_MODEL+ADAPTER",
            )


def _is_average(recipe: Recipe) -> bool:
    setting = recipe.parameters.get("normalize")
    return setting is None or setting.value is True


def _products(label: str, adapter: LoneAdapter, adapters: Mapping[ModelRef, LoneAdapter]) -> Checkpoint:
    """What an adapter adds to every module that any of them changes; to some, nothing."""
    tensors: dict[str, TensorInfo] = {}
    for module in _modules(adapters):
        name = f"{module}.weight"
        known = next(a for a in adapters.values() if module in a.modules).modules[module]
        own = adapter.modules.get(module)
        empty = zeros(name, known.shape, weights_file(adapter.folder))
        tensors[name] = empty if own is None else own.added_to(empty)
    tensors |= {name: replace(info, name=name) for name, info in adapter.saved.items()}
    return Checkpoint(
        label=label,
        folder=Path("/nonexistent"),
        tensors=tensors,
        config={},
        tokenizer=None,
        adapters=(),
        fingerprint=adapter.digest,
    )


def _names(module: str, *, embedding: bool) -> tuple[str, str]:
    kind, ending = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
    return f"{PREFIX}{module}.{kind}A{ending}", f"{PREFIX}{module}.{kind}B{ending}"


def _dtype(recipe: Recipe, adapters: Mapping[ModelRef, LoneAdapter]) -> str:
    """Of the factors: what the recipe says, else the widest among the adapters'."""
    if wanted := recipe.out_dtype or recipe.dtype:
        return BY_TORCH_NAME[wanted].name
    own = {f.a.dtype for adapter in adapters.values() for f in adapter.modules.values()}
    most = max(DTYPES[dtype].itemsize for dtype in own)
    widest = sorted(dtype for dtype in own if DTYPES[dtype].itemsize == most)
    # Two of one width reach further or are finer: neither holds the other's numbers.
    return widest[0] if len(widest) == 1 else "F32"


def _summed(
    module: str,
    job: TensorJob,
    order: Sequence[ModelRef],
    adapters: Mapping[ModelRef, LoneAdapter],
    dtype: str,
) -> tuple[TensorInfo, TensorInfo]:
    """The A, each with its weight, below each other; the B side by side."""
    parts: list[tuple[TensorInfo, TensorInfo]] = []
    embedding = False
    for ref, share in zip((order[i.checkpoint] for i in job.inputs), _shares(job), strict=True):
        factors = adapters[ref].modules.get(module)
        if factors is not None:
            embedding = factors.embedding
            parts.append((altered(factors.a, Altered(factors.a, scale=share * factors.scale)), factors.b))
    a_name, b_name = _names(module, embedding=embedding)
    a = joined(a_name, [Matrix(a, 0, *a.shape) for a, _ in parts], ())
    turned = [transposed(b) for _, b in parts]
    b = transposed(joined(b_name, [Matrix(b, 0, *b.shape) for b in turned], ()))
    return cast_to(dtype, replace(a, name=a_name)), cast_to(dtype, replace(b, name=b_name))


def _shares(job: TensorJob) -> Sequence[float]:
    """By what the products of a job's inputs are multiplied."""
    if job.method is None:
        return [1.0] * len(job.inputs)
    weights = cast("list[float]", job.values["weight"])
    return normalized(weights) if job.values["normalize"] else list(weights)


def _most(module: str, adapters: Mapping[ModelRef, LoneAdapter], method: str) -> int:
    """The highest rank that the result can have."""
    own = [a.modules[module] for a in adapters.values() if module in a.modules]
    return min(*own[0].shape, *([sum(factors.rank for factors in own)] if method in _SUMS else ()))


def _decomposed(
    module: str,
    made: TensorInfo,
    rank: int,
    adapters: Mapping[ModelRef, LoneAdapter],
    dtype: str,
) -> tuple[TensorInfo, TensorInfo]:
    """The largest singular values of what the products are merged into."""
    own = next(a.modules[module] for a in adapters.values() if module in a.modules)
    rows, columns = own.shape
    names = _names(module, embedding=own.embedding)
    sides = [
        TensorInfo(name, dtype, shape, made.file, 0, made.nbytes, factor)
        for name, shape, first in zip(names, ((rank, columns), (rows, rank)), (True, False), strict=True)
        for factor in [Factor(None, made, rank, first, True, False, None)]
    ]
    return sides[0], sides[1]


def _settings(adapters: Mapping[ModelRef, LoneAdapter], ranks: Mapping[str, int]) -> dict[str, Any]:
    """adapter_config.json: that of the first, with the ranks of the result and no scale."""
    known = list(adapters.values())
    first = known[0].settings
    most = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != most}
    saved = [name for adapter in known for name in adapter.settings.get("modules_to_save") or ()]
    # What a model calls its modules may be something else than what its files do, and short names fit both.
    alike = all(adapter.modules.keys() == known[0].modules.keys() for adapter in known)
    own: dict[str, Any] = {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": first.get("target_modules") if alike else list(ranks),
        "modules_to_save": list(dict.fromkeys(saved)) or None,
        "use_rslora": False,
        "inference_mode": True,
        "init_lora_weights": True,
        # How factors were begun; and what chose modules, if they are named now.
        **dict.fromkeys(("eva_config", "corda_config", "loftq_config", "lora_ga_config")),
    }
    if not alike:
        own |= dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    return {**first, **own}
