"""An adapter in PEFT's format from a fine-tuned model and its base."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from meldkit.checkpoint import Checkpoint, OpenFiles, Scratch, TensorInfo, open_files, open_model, read_all
from meldkit.errors import MismatchError, RecipeError
from meldkit.layout import infer_layout
from meldkit.options import MergeOptions
from meldkit.plan import Composed, Plan, Tool
from meldkit.recipe import ModelRef
from meldkit.recipe.write import to_yaml_text
from meldkit.tools.composed import held, plan_of
from meldkit.tools.lora.factors import Factor, decompose, difference

#: Before the names of modules in an adapter's file.
PREFIX = "base_model.model."
#: Models whose linear layers store their matrices transposed.
_CONV1D = ("gpt2", "openai-gpt")
#: Elements read at once where two tensors are compared.
_PIECE = 1 << 20

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Extraction:
    """What to extract.

    Attributes:
        model: the fine-tuned model.
        base: what it was trained from.
        max_rank: largest rank of a matrix.
        epsilon: singular values up to this are left out; 0 leaves out none.
        keep: share of the square of each change that is kept, if fewer singular values do; None for all.
        distribute_scale: whether both factors carry the root of the singular values; else A carries them.
        embed_lora: factor the change of embeddings too; else they are stored as they are.
        save: names of modules, or their last parts, that are stored as they are.
        exclude, include: regular expressions of modules.
        skip_others: leave out what cannot be factored, such as norms; else it is stored as it is.
        exact: find all singular values, whatever that takes; None for small matrices only.
        dtype: of the factors, as torch calls it.
    """

    model: ModelRef
    base: ModelRef
    max_rank: int = 128
    epsilon: float = 0.0
    keep: float | None = None
    distribute_scale: bool = True
    embed_lora: bool = False
    save: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    skip_others: bool = False
    exact: bool | None = None
    dtype: str = "float32"

    @classmethod
    def of(cls, model: str, base: str, **others: Any) -> Extraction:
        """The same, with models as recipes name them."""
        return cls(ModelRef.parse(model), ModelRef.parse(base), **others)

    def text(self) -> str:
        """The same as YAML."""
        models = {"model": self.model.to_value(), "base": self.base.to_value()}
        lists = {name: list(getattr(self, name)) for name in ("save", "exclude", "include")}
        return to_yaml_text(asdict(self) | models | lists)


@dataclass(frozen=True, slots=True)
class Module:
    """A module with a weight.

    Attributes:
        name: without ".weight".
        base, model: the weight in both; no base for one that only the fine-tune has.
        bias: of the fine-tune and of the base, if both have one.
        kind: linear, embedding or other.
    """

    name: str
    base: TensorInfo | None
    model: TensorInfo
    bias: tuple[TensorInfo, TensorInfo] | None
    kind: str

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class PlannedAdapter:
    """An adapter about to be written.

    Attributes:
        plan: that writes it.
        ranks: of each module that is factored.
        saved: names of modules that are stored as they are.
        unchanged: how many modules the fine-tune did not change.
        models: base and fine-tune, open.
        turned: whether matrices are stored transposed.
    """

    plan: Plan
    ranks: Mapping[str, int]
    saved: tuple[str, ...]
    unchanged: int
    models: tuple[Checkpoint, Checkpoint]
    turned: bool


def plan_extraction(
    wanted: Extraction, options: MergeOptions | None = None, *, progress: Progress | None = None
) -> PlannedAdapter:
    """Decide which modules become factors, and of which rank; the factors are computed when they are written.

    Args:
        wanted: what to extract.
        options: as for `merge`.
        progress: called with how many modules were looked at, of how many, and which is next.

    Raises:
        RecipeError: the numbers make no sense.
        MismatchError: the models do not fit together, or do not differ.
    """
    options = options or MergeOptions()
    _check(wanted)
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    base, model = (open_model(ref, cache=cache) for ref in (wanted.base, wanted.model))
    modules = list(_modules(wanted, base, model))
    turned = base.config.get("model_type") in _CONV1D
    tensors: dict[str, TensorInfo] = {}
    ranks: dict[str, int] = {}
    saved: list[Module] = []
    factored: list[Module] = []
    unchanged = 0
    biased = False
    with open_files() as files:
        for number, module in enumerate(modules):
            if progress is not None:
                progress(number, len(modules), module.name)
            if _same(files, module):
                unchanged += 1
                continue
            if wanted.skip_others and module.kind == "other":
                continue
            if _is_saved(wanted, module):
                saved.append(module)
                continue
            ranks[module.name] = rank = _rank(files, wanted, module, turned)
            tensors |= {info.name: info for info in _factors(wanted, module, rank, turned)}
            factored.append(module)
            biased = biased or (module.bias is not None and not _equal(files, *module.bias))
        if biased:
            # PEFT expects one of each module then.
            tensors |= {info.name: info for module in factored for info in _bias(files, module, turned)}
    # PEFT copies every module of a name that is to be saved.
    leaves = dict.fromkeys(module.leaf for module in saved)
    for module in modules:
        if module.leaf in leaves and module.name not in ranks:
            name = f"{PREFIX}{module.name}.weight"
            tensors[name] = replace(module.model, name=name)
            if module.bias is not None:
                tensors[name.replace(".weight", ".bias")] = replace(
                    module.bias[0], name=f"{PREFIX}{module.name}.bias"
                )
    if not tensors:
        raise MismatchError(
            f"'{wanted.model}' does not differ from '{wanted.base}' in any module that is looked at",
            hint="is the base the fine-tune itself? --include-regex and --exclude-regex choose modules",
        )
    settings = _settings(wanted, modules, ranks, list(leaves), base, biased=biased)
    summary = f"{len(ranks)} modules of rank up to {settings['r']}, from {wanted.model} − {wanted.base}"
    tool = Tool(
        "extract-lora", wanted.text(), summary, {"adapter_config.json": json.dumps(settings, indent=2) + "\n"}
    )
    content = (wanted, base.fingerprint, model.fingerprint, sorted(ranks.items()), list(tensors))
    made = Composed(
        label="adapter",
        # Nothing that lies beside the models belongs beside an adapter.
        folder=Path("/nonexistent"),
        tensors=tensors,
        config={},
        tokenizer=None,
        adapters=(),
        fingerprint=hashlib.sha256(repr(content).encode()).hexdigest(),
        inputs=(base, model),
    )
    plan = plan_of(made, tool, replace(options, out_shard_size="1000B", copy_tokenizer=False))
    stored = tuple(replace(file, name="adapter_model.safetensors") for file in plan.files)
    names = tuple(module.name for module in saved)
    return PlannedAdapter(replace(plan, files=stored), ranks, names, unchanged, (base, model), turned)


def _check(wanted: Extraction) -> None:
    if wanted.max_rank < 1:
        raise RecipeError(f"the largest rank is {wanted.max_rank}", hint="it is 1 or more, such as 32")
    if wanted.keep is not None and not 0 < wanted.keep <= 1:
        raise RecipeError(f"{wanted.keep} of each change cannot be kept", hint="--keep is a share up to 1")
    for text in (*wanted.include, *wanted.exclude):
        _check_expression(text)


def _check_expression(text: str) -> None:
    try:
        re.compile(text)
    except re.error as e:
        raise RecipeError(
            f"'{text}' is no regular expression: {e}", hint="it is searched for in the names of modules"
        ) from None


def _modules(wanted: Extraction, base: Checkpoint, model: Checkpoint) -> Iterator[Module]:
    layout = infer_layout(model, model.config)
    # What other programs leave out, as it follows from the rest.
    spare = ("rotary_emb.inv_freq", "lm_head.weight")
    lacking = [name for name in base if name not in model and not name.endswith(spare)]
    if lacking:
        raise MismatchError(
            f"'{wanted.model}' lacks {lacking[0]}, which the base '{wanted.base}' has",
            hint="the base is the model that the fine-tune began with",
        )
    for name, info in model.tensors.items():
        if not name.endswith(".weight") or not info.floating:
            continue
        module = name.removesuffix(".weight")
        other = base.tensors.get(name)
        role = layout.places[name].role
        kind = (
            "embedding" if role in ("embedding", "lm_head") else "linear" if len(info.shape) == 2 else "other"
        )
        if other is not None and other.shape != info.shape and kind != "embedding":
            raise MismatchError(
                f"{name} is {list(info.shape)} in '{wanted.model}', but {list(other.shape)} in the base",
                hint="the base is the model that the fine-tune began with",
            )
        bias = f"{module}.bias"
        pair = (model.tensors[bias], base.tensors[bias]) if bias in model and bias in base else None
        if _chosen(wanted, module):
            yield Module(module, other, info, pair, kind)


def _chosen(wanted: Extraction, module: str) -> bool:
    if wanted.include and not any(re.search(text, module) for text in wanted.include):
        return False
    return not any(re.search(text, module) for text in wanted.exclude)


def _is_saved(wanted: Extraction, module: Module) -> bool:
    """Whether a module that has changed is stored as it is."""
    if module.name in wanted.save or module.leaf in wanted.save or module.base is None:
        return True
    resized = module.base.shape != module.model.shape
    return resized or module.kind == "other" or (module.kind == "embedding" and not wanted.embed_lora)


def _same(files: OpenFiles, module: Module) -> bool:
    if module.base is None or module.base.shape != module.model.shape:
        return False
    same_bias = module.bias is None or _equal(files, *module.bias)
    return same_bias and _equal(files, module.base, module.model)


def _equal(files: OpenFiles, one: TensorInfo, other: TensorInfo) -> bool:
    if one.shape != other.shape:
        return False
    sources = [info.open(files) for info in (one, other)]
    rooms = [torch.empty(min(_PIECE, one.numel)) for _ in sources]
    scratch = Scratch()
    for start in range(0, one.numel, _PIECE):
        stop = min(start + _PIECE, one.numel)
        parts = [room[: stop - start] for room in rooms]
        for source, part in zip(sources, parts, strict=True):
            source.read(start, stop, part, scratch)
        if not torch.equal(*parts):
            return False
    return True


def _rank(files: OpenFiles, wanted: Extraction, module: Module, turned: bool) -> int:
    assert module.base is not None
    most = min(wanted.max_rank, *module.model.shape)
    if wanted.keep is None and not wanted.epsilon:
        return most
    delta = difference(files, module.base, module.model)
    made = decompose(delta.T if turned else delta, most, exact=wanted.exact)
    if wanted.keep is not None:
        most = min(most, made.rank_for(wanted.keep))
    if wanted.epsilon:
        most = min(most, int((made.s > wanted.epsilon).sum()))
    return max(most, 1)


def _factors(wanted: Extraction, module: Module, rank: int, turned: bool) -> Iterator[TensorInfo]:
    assert module.base is not None
    embedding = module.kind == "embedding" and not module.leaf.endswith("head")
    rows, columns = module.model.shape
    # Of an embedding [tokens, size] the transpose is factored: B A is [size, tokens].
    flipped = embedding or turned
    if flipped:
        rows, columns = columns, rows
    kind, ending = ("lora_embedding", "") if embedding else ("lora", ".weight")
    for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
        factor = Factor(
            module.base, module.model, rank, side == "A", wanted.distribute_scale, flipped, wanted.exact
        )
        name = f"{PREFIX}{module.name}.{kind}_{side}{ending}"
        dtype = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[wanted.dtype]
        nbytes = module.base.nbytes + module.model.nbytes
        yield TensorInfo(name, dtype, shape, module.model.file, 0, nbytes, factor)


def _bias(files: OpenFiles, module: Module, turned: bool) -> Iterator[TensorInfo]:
    """The change of a bias; of a module that has none, zeros."""
    if module.kind == "embedding" and not module.leaf.endswith("head"):
        return
    change = torch.zeros(module.model.shape[1 if turned else 0])
    if module.bias is not None:
        model, base = (read_all(files, info) for info in module.bias)
        change = model - base
    yield held(f"{PREFIX}{module.name}.lora_B.bias", change.numpy(), "F32", module.model.file)


def _settings(
    wanted: Extraction,
    modules: Sequence[Module],
    ranks: Mapping[str, int],
    saved: list[str],
    base: Checkpoint,
    *,
    biased: bool,
) -> dict[str, Any]:
    """adapter_config.json."""
    most = max(ranks.values(), default=1)
    part = {module.leaf for module in modules if module.name not in ranks}
    whole = {module.leaf for module in modules} - part
    targets = [name for name in ranks if name.rpartition(".")[2] not in whole]
    others = {name: rank for name, rank in ranks.items() if rank != most}
    architecture = " ".join(map(str, base.config.get("architectures") or ()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None,
        "base_model_name_or_path": str(wanted.base),
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted({name.rpartition(".")[2] for name in ranks} & whole) + targets,
        "modules_to_save": saved or None,
        "lora_bias": biased,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "fan_in_fan_out": base.config.get("model_type") in _CONV1D,
        "inference_mode": True,
    }
