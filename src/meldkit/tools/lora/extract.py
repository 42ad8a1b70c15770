"""An adapter in PEFT's format from a fine-tuned model and its base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meldkit.checkpoint import (
    Checkpoint,
    Locate,
    OpenFiles,
    TensorInfo,
    open_files,
    open_model,
)
from meldkit.checkpoint.adapter import PREFIX
from meldkit.checkpoint.adapter.vocabulary import EMBEDDING
from meldkit.checkpoint.config import writes_texts
from meldkit.composed import Factor, decompose, difference, plan_of_adapter
from meldkit.errors import MismatchError
from meldkit.options import MergeOptions
from meldkit.plan import Plan, Tool
from meldkit.tools.lora.changes import equal, loose_changes
from meldkit.tools.lora.experts import in_first, matrix_of, stacked_factors, wrappers
from meldkit.tools.lora.modules import CONV1D, Module, experts_of, group_of, modules_of
from meldkit.tools.lora.wanted import Extraction, check, unmatched

#: As safetensors calls types.
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

#: What a tied head is called.
_HEAD = f"{PREFIX}lm_head.weight"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class PlannedAdapter:
    """An adapter about to be written.

    Attributes:
        plan: that writes it.
        ranks: of each module that is factored.
        saved: names of modules that are stored as they are.
        unchanged: how many modules the fine-tune did not change.
        skipped: how many it did change that cannot be factored, and are left out as wanted.
        unread: how many were not looked at.
        models: base and fine-tune, open.
        turned: names of modules whose matrices are stored transposed, or are embeddings.
    """

    plan: Plan
    ranks: Mapping[str, int]
    saved: tuple[str, ...]
    unchanged: int
    skipped: int
    unread: int
    models: tuple[Checkpoint, Checkpoint]
    turned: frozenset[str]


def plan_extraction(
    wanted: Extraction,
    options: MergeOptions | None = None,
    *,
    progress: Progress | None = None,
    locate: Locate | None = None,
) -> PlannedAdapter:
    """Decide which modules become factors, and of which rank; the factors are computed when they are written.

    Args:
        wanted: what to extract.
        options: as for `merge`.
        progress: called with how many modules were compared and ranked, of how many, and which is next.
        locate: where the models are now, if they lay elsewhere.

    Raises:
        RecipeError: the numbers make no sense.
        MismatchError: the models do not fit together, or do not differ.
    """
    options = options or MergeOptions()
    check(wanted)
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    base, model = (open_model(ref, cache=cache, locate=locate) for ref in (wanted.base, wanted.model))
    tied = _is_tied(model)
    _check_kinds(base, model, options)
    # A head that is stored though it is the embedding says nothing of its own.
    every = [module for module in modules_of(base, model) if not (tied and module.kind == "head")]
    modules = [module for module in every if wanted.chooses(module.name)]
    tensors: dict[str, TensorInfo] = {}
    ranks: dict[str, int] = {}
    saved: list[Module] = []
    factored: list[Module] = []
    unchanged = 0
    skipped = 0
    warnings = list(unmatched(wanted, [module.name for module in every]))
    with open_files() as files:
        warnings += loose_changes(files, base, model, wanted.chooses)
        # If one expert of a layer has changed, all are factored: PEFT joins them.
        changed: set[str] = set()
        for number, module in enumerate(modules):
            if progress is not None:
                progress(number, 2 * len(modules), module.name)
            if not _same(files, module):
                changed.add(group_of(module.name))
        for number, module in enumerate(modules, len(modules)):
            if progress is not None:
                progress(number, 2 * len(modules), module.name)
            if group_of(module.name) not in changed:
                unchanged += 1
                continue
            if wanted.skip_others and module.kind == "other":
                skipped += 1
                continue
            if _is_saved(wanted, module, tied=tied):
                saved.append(module)
                continue
            ranks[module.name] = _rank(files, wanted, module)
            factored.append(module)
        ranks = _of_layers(ranks)
        stacks = {module.name for module in factored if module.kind == "experts"}
        for module in factored:
            rank = ranks[module.name]
            if module.name in stacks:
                own = _stacked(wanted, module, rank, stacks, in_first=in_first(base.config.get("model_type")))
            else:
                own = _factors(wanted, module, rank)
            tensors |= {info.name: info for info in own}
        biases = {info.name: info for info in _biases(files, factored)}
        tensors |= biases
    # PEFT saves every module whose name ends so; most names are whole ones.
    names = dict.fromkeys(module.name for module in saved)
    for module in modules:
        ends = any(f".{module.name}".endswith(f".{name}") for name in names)
        if ends and module.name not in ranks:
            for part in ("weight", "bias"):
                stored, name = f"{module.name}.{part}", f"{PREFIX}{_loaded(module.name, base)}.{part}"
                if stored in model:
                    tensors[name] = replace(model[stored], name=name)
    if not tensors:
        raise MismatchError(
            f"'{wanted.model}' does not differ from '{wanted.base}' in any module that is looked at",
            hint="is the base the fine-tune itself? --include-regex and --exclude-regex choose modules",
        )
    whole = [_loaded(name, base) for name in names]
    settings = _settings(wanted, ranks, stacks, whole, base, model, biased=bool(biases))
    if tied:
        for module in saved:
            if EMBEDDING.fullmatch(f"{module.name}.weight"):
                # The head is the embedding still, and PEFT looks for both.
                settings["ensure_weight_tying"] = True
                tensors[_HEAD] = replace(module.model, name=_HEAD)
    if wanted.embed_lora and tied and any(m.kind == "embedding" for m in saved):
        warnings.append(
            "the embedding is stored whole: it is the head, too, and PEFT would merge its factors twice"
        )
    warnings += _loading(saved, ranks)
    summary = f"{len(ranks)} modules of rank up to {settings['r']}, from {wanted.model} − {wanted.base}"
    tool = Tool("extract-lora", wanted.text(), summary)
    plan = plan_of_adapter(
        tensors,
        settings,
        (base, model),
        tool,
        options,
        content=(wanted, sorted(ranks.items())),
        warnings=warnings,
        tokenizer=_own_tokenizer(model, saved),
    )
    turned = frozenset(m.name for m in factored if m.turned or m.kind == "embedding")
    unread = len(every) - len(modules)
    return PlannedAdapter(plan, ranks, tuple(names), unchanged, skipped, unread, (base, model), turned)


def _check_kinds(base: Checkpoint, model: Checkpoint, options: MergeOptions) -> None:
    """Refuse a fine-tune that is another kind of model than its base."""
    kinds = [known.config.get("model_type") for known in (base, model)]
    if all(kinds) and kinds[0] != kinds[1] and not options.allow_crimes:
        raise MismatchError(
            f"'{model.label}' is of model_type {kinds[1]}, the base '{base.label}' of {kinds[0]}",
            hint="the base is the model that the fine-tune began with; --allow-crimes takes any whose "
            "tensors have the same names and shapes",
        )


def _loading(saved: Sequence[Module], ranks: Mapping[str, int]) -> Iterator[str]:
    """What to know before PEFT loads an adapter; this program reads it as it is."""
    if not ranks:
        yield "no matrix is factored, and PEFT loads no adapter that only replaces modules"
    for module in saved:
        if module.kind == "embedding" and module.base is not None and module.base.shape != module.model.shape:
            rows, before = module.model.shape[0], module.base.shape[0]
            yield (
                f"{module.name} has {rows:,} rows, {before:,} in the base: call "
                f"model.resize_token_embeddings({rows}) before PEFT loads the adapter"
            )


def _loaded(module: str, base: Checkpoint) -> str:
    """What transformers calls a module that is stored whole, where files call it otherwise.

    Of modules with factors PEFT knows the names in files, too.
    """
    mixtral = base.config.get("model_type") == "mixtral"
    return module.replace(".block_sparse_moe.gate", ".mlp.gate") if mixtral else module


def _is_tied(model: Checkpoint) -> bool:
    """Whether a model's head is its embedding."""
    says = model.config.get("tie_word_embeddings")
    if says is not None:
        return bool(says)
    heads = any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in model)
    return writes_texts(model.config) is not False and not heads


def _own_tokenizer(model: Checkpoint, saved: Sequence[Module]) -> Path | None:
    """The folder of the fine-tune's tokenizer, if it has tokens that the base has no rows for."""
    resized = any(
        module.kind in ("embedding", "head")
        and module.base is not None
        and module.base.shape != module.model.shape
        for module in saved
    )
    folder = model.tokenizer or model.folder
    return folder if resized and (folder / "tokenizer_config.json").is_file() else None


def _is_saved(wanted: Extraction, module: Module, *, tied: bool) -> bool:
    """Whether a module that has changed is stored as it is."""
    if wanted.saves(module.name) or module.base is None:
        return True
    resized = module.base.shape != module.model.shape
    if module.kind in ("embedding", "head"):
        # Of factors of a tied embedding PEFT merges the product twice, or else the head goes without it.
        return resized or tied or not wanted.embed_lora
    return resized or module.kind == "other"


def _same(files: OpenFiles, module: Module) -> bool:
    if module.base is None or module.base.shape != module.model.shape:
        return False
    same_bias = module.bias is None or equal(files, *module.bias)
    return same_bias and equal(files, module.base, module.model)


def _rank(files: OpenFiles, wanted: Extraction, module: Module) -> int:
    """How many singular values a change needs; experts in one tensor, as many as the one that needs most."""
    assert module.base is not None
    most = min(wanted.max_rank, *module.model.shape[-2:])
    if wanted.keep is None and not wanted.epsilon:
        return most
    pairs = [(module.base, module.model)]
    if module.kind == "experts":
        count = module.model.shape[0]
        pairs = [(matrix_of(module.base, i), matrix_of(module.model, i)) for i in range(count)]
    needed = 1
    for base, model in pairs:
        delta = difference(files, base, model)
        made = decompose(delta.T if module.turned else delta, most, exact=wanted.exact)
        rank = most if wanted.keep is None else min(most, made.rank_for(wanted.keep))
        needed = max(needed, min(rank, int((made.s > wanted.epsilon).sum())) if wanted.epsilon else rank)
    return needed


def _of_layers(ranks: Mapping[str, int]) -> dict[str, int]:
    """The same, with one rank for all experts of a layer that are stored one by one: PEFT joins them."""
    largest: dict[str, int] = {}
    for name, rank in ranks.items():
        largest[experts_of(name)] = max(rank, largest.get(experts_of(name), 0))
    return {name: largest[experts_of(name)] for name in ranks}


def _factors(wanted: Extraction, module: Module, rank: int) -> Iterator[TensorInfo]:
    assert module.base is not None
    embedding = module.kind == "embedding"
    rows, columns = module.model.shape
    # Of an embedding [tokens, size] the transpose is factored: B A is [size, tokens].
    flipped = embedding or module.turned
    if flipped:
        rows, columns = columns, rows
    kind, ending = ("lora_embedding", "") if embedding else ("lora", ".weight")
    for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
        factor = Factor(
            module.base, module.model, rank, side == "A", wanted.distribute_scale, flipped, wanted.exact
        )
        name = f"{PREFIX}{module.name}.{kind}_{side}{ending}"
        dtype = _DTYPES[wanted.dtype]
        nbytes = module.base.nbytes + module.model.nbytes
        yield TensorInfo(name, dtype, shape, module.model.file, 0, nbytes, factor)


def _stacked(
    wanted: Extraction, module: Module, rank: int, stacks: set[str], *, in_first: bool
) -> Iterator[TensorInfo]:
    """Factors of the matrices of all experts."""
    assert module.base is not None
    rows, columns = module.model.shape[1:][:: -1 if in_first else 1]

    def make(base: TensorInfo, model: TensorInfo, first: bool) -> TensorInfo:
        factor = Factor(base, model, rank, first, wanted.distribute_scale, in_first, wanted.exact)
        shape = (rank, columns) if first else (rows, rank)
        nbytes = base.nbytes + model.nbytes
        return TensorInfo(model.name, _DTYPES[wanted.dtype], shape, model.file, 0, nbytes, factor)

    owner = module.name.rpartition(".")[0] + wrappers(module.name, stacks)
    names = (f"{PREFIX}{owner}.lora_A.weight", f"{PREFIX}{owner}.lora_B.weight")
    return stacked_factors(module.base, module.model, names, make)


def _biases(files: OpenFiles, factored: Sequence[Module]) -> Iterator[TensorInfo]:
    """Biases that have changed, whole: as PEFT saves those that were trained beside factors.

    What PEFT has for changes of biases (lora_bias) is for all modules or for none: then it merges no layer
    without a bias, and loads no factors of embeddings or experts.
    """
    for module in factored:
        if module.bias is not None and not equal(files, *module.bias):
            yield replace(module.bias[0], name=f"{PREFIX}{module.name}.base_layer.bias")


def _settings(
    wanted: Extraction,
    ranks: Mapping[str, int],
    stacks: set[str],
    saved: list[str],
    base: Checkpoint,
    model: Checkpoint,
    *,
    biased: bool,
) -> dict[str, Any]:
    """adapter_config.json."""
    most = max(ranks.values(), default=1)
    # A name's last part stands for all such modules, if all are factored.
    every = [name.removesuffix(".weight") for name in model if name.endswith(".weight")]
    part = {name.rpartition(".")[2] for name in every if name not in ranks}
    modules = [name for name in ranks if name not in stacks]
    short = sorted({name.rpartition(".")[2] for name in modules} - part)
    # Beside modules of these names, PEFT has a rule of its own for the ranks of parameters.
    own_rule = any(name.endswith((".gate_proj", ".up_proj")) for name in modules)
    others = {name: rank for name, rank in ranks.items() if own_rule and name in stacks}
    others |= {name: rank for name, rank in ranks.items() if rank != most}
    architecture = " ".join(map(str, base.config.get("architectures") or ()))
    # From this version on, PEFT takes experts for [experts, out, in].
    of_stacks = {"target_parameters": sorted(stacks), "peft_version": "0.19.0"} if stacks else {}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None,
        "base_model_name_or_path": str(wanted.base),
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": short + [name for name in modules if name.rpartition(".")[2] in part],
        **of_stacks,
        "modules_to_save": saved or None,
        "bias": "lora_only" if biased else "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "fan_in_fan_out": base.config.get("model_type") in CONV1D,
        "inference_mode": True,
    }
