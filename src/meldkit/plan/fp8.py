"""Weights of the output as 8-bit floats: which ones, and what config.json says about them.

    value = code · scale        codes X.weight, F8_E4M3;  X.weight_scale_inv, F32, for each block of 128 × 128

That is the format of DeepSeek-V3, which programs that serve models read. Stored in it are the matrices of
attention, MLPs and experts in the layers of a language model. A matrix whose sizes are no multiples of 128
is not, for transformers does not load it; nor is what is loaded into one tensor with it. Nor are experts that
are stored joined: on devices without 8-bit arithmetic transformers would take their codes for the weights.

Sources: `transformers.integrations.finegrained_fp8`, `transformers.quantizers.quantizer_finegrained_fp8` and
`transformers.conversion_mapping` (transformers 5); vLLM, `quantization/utils/quant_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from meldkit.checkpoint import BY_TORCH_NAME, DTYPES, TensorInfo
from meldkit.errors import MismatchError, RecipeError
from meldkit.layout.words import NOT_TEXT, words
from meldkit.plan.model import TensorJob
from meldkit.plan.pieces import Model, at
from meldkit.plan.slots import Slot
from meldkit.recipe import Recipe

_CODES = BY_TORCH_NAME["float8_e4m3fn"]
#: Height and width of a block in elements.
_BLOCK = 128
_SIZES = f"{_BLOCK} × {_BLOCK}"
_ALL_EXPERTS = "experts"
_ROLES = ("attention", "mlp", "expert")
#: Matrices of one module that programs join into one.
_JOINED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
#: Kinds of models with matrices of other modules than torch's linear ones, which alone are loaded in blocks.
_OTHER_LINEAR = (
    "clvp",
    "convbert",
    "decision_transformer",
    "falcon",
    "gpt2",
    "idefics",
    "imagegpt",
    "openai-gpt",
)
#: What transformers holds in float32.
_FLOAT32 = re.compile(r".*(DenseReluDense\.wo|indexer\.weights_proj)\.weight")
#: What output layers are called that are the embedding and have no tensor of their own.
_TIED = ("lm_head", "proj_out", "predictions.decoder", "^decoder$")
#: What belongs to the experts of a layer; the matrices of a single one, and its biases.
_EXPERTS = re.compile(r"(?P<module>(?:.*\.)?experts)\.(?P<rest>.*)")
_SINGLE = re.compile(r"\d+\.\w+\.weight")
_BIAS = re.compile(r"\d+\.\w+\.bias")


def in_blocks(
    drafts: Sequence[TensorJob],
    slots: Sequence[Slot],
    recipe: Recipe,
    donor: Model,
    infos: Sequence[Mapping[str, TensorInfo]],
    notes: list[str],
) -> list[TensorJob]:
    """The jobs with scales for what is stored in blocks, and a wider type for the rest.

    They stay as they are if the recipe asks for another type, or for what mergekit does; and where there is
    no config.json to say how to read blocks.

    Args:
        drafts: jobs of all output tensors, in the type that the recipe names.
        slots: of the jobs.
        recipe: what was asked for.
        donor: gives the configuration.
        infos: tensors of the checkpoints.
        notes: gets what the user may not expect.

    Raises:
        RecipeError: nothing can be stored so.
        MismatchError: there is a tensor of the name that scales must have.
    """
    wanted = recipe.out_dtype or recipe.dtype
    if wanted != _CODES.torch or recipe.compat is not None or not donor.checkpoint.config:
        return list(drafts)
    groups = _candidates(drafts, slots, str(donor.checkpoint.config.get("model_type")))
    stored = {name for names in groups.values() if all(names.values()) for name in names}
    if not stored:
        where = recipe.lines.get("out_dtype", recipe.lines.get("dtype", recipe.origin))
        raise RecipeError(
            f"{at(where)}no weight of '{donor.ref}' can be stored as {wanted}, in blocks of {_SIZES}",
            hint="choose bfloat16; or 'compat: mergekit', which rounds all tensors without scales",
        )
    result: list[TensorJob] = []
    for draft, slot in zip(drafts, slots, strict=True):
        reference = infos[slot.reference.checkpoint][slot.reference.tensor]
        if draft.name in stored:
            result.append(replace(draft, scales=_scales(draft)))
        elif reference.floating:
            result.append(replace(draft, dtype=_wider(recipe, reference)))
        else:
            result.append(draft)
    names = {job.name for job in result}
    for job in result:
        if job.scales is not None and job.scales.name in names:
            raise MismatchError(
                f"'{donor.ref}' has a tensor '{job.scales.name}', which is what the scales of "
                f"'{job.name}' are called",
                hint="choose bfloat16 as out_dtype",
            )
    notes += _notes(result, groups)
    return result


def _scales(draft: TensorJob) -> TensorJob:
    rows, columns = draft.shape
    shape = (rows // _BLOCK, columns // _BLOCK)
    return TensorJob(f"{draft.name}_scale_inv", "F32", shape, None, {}, (), None, -1, -1)


def _wider(recipe: Recipe, reference: TensorInfo) -> str:
    """The type of what is not stored in blocks: that of computing, else the tensor's own."""
    if recipe.dtype is not None and recipe.dtype != _CODES.torch:
        return BY_TORCH_NAME[recipe.dtype].name
    return reference.dtype if DTYPES[reference.dtype].itemsize > 1 else "BF16"


def _candidates(
    drafts: Sequence[TensorJob], slots: Sequence[Slot], model_type: str
) -> dict[str, dict[str, bool]]:
    """What is stored in blocks together or not at all: some name to {tensor: whether it could be}."""
    groups: dict[str, dict[str, bool]] = {}
    if model_type in _OTHER_LINEAR:
        return groups
    for draft, slot in zip(drafts, slots, strict=True):
        name, stack = draft.name, slot.place.stack
        if stack is None or words(stack.prefix) & NOT_TEXT or slot.place.role not in _ROLES:
            continue
        expert = _EXPERTS.fullmatch(name)
        if expert is not None:
            if len(draft.shape) > 1 or _BIAS.fullmatch(expert["rest"]):
                # In all layers alike: transformers knows no layer of its own for some of them.
                single = _SINGLE.fullmatch(expert["rest"]) is not None
                groups.setdefault(_ALL_EXPERTS, {})[name] = single and _fits(draft)
        elif len(draft.shape) == 2 and name.endswith(".weight") and not _FLOAT32.fullmatch(name):
            groups.setdefault(_joined(name), {})[name] = _fits(draft)
    return groups


def _fits(draft: TensorJob) -> bool:
    divisible = len(draft.shape) == 2 and not any(size % _BLOCK for size in draft.shape)
    return divisible and draft.numel > 0 and draft.dtype == _CODES.name


def _joined(name: str) -> str:
    """A name for all that is joined with a weight into one."""
    module, leaf, ending = name.rsplit(".", 2) if name.count(".") > 1 else ("", *name.rsplit(".", 1))
    together = next((leaves for leaves in _JOINED if leaf in leaves), (leaf,))
    return f"{module}.{together[0]}.{ending}"


def _notes(jobs: Sequence[TensorJob], groups: Mapping[str, Mapping[str, bool]]) -> Iterator[str]:
    """What is stored in blocks, and which weights of that kind are not."""
    num_stored = sum(job.scales is not None for job in jobs)
    yield (
        f"{num_stored} weights are stored as {_CODES.name} with a scale for each block of {_SIZES}, "
        f"{len(jobs) - num_stored} tensors in a wider type"
    )
    for group, names in groups.items():
        if all(names.values()):
            continue
        if group == _ALL_EXPERTS:
            first = next(name for name, fits in names.items() if not fits)
            why = f"are joined, have biases, or are not made of blocks of {_SIZES} ({first})"
            yield f"experts: in a wider type, as they {why}"
        else:
            ragged = ", ".join(name for name, fits in names.items() if not fits)
            yield f"{', '.join(names)}: in a wider type; not made of blocks of {_SIZES}: {ragged}"


def with_quantisation(config: dict[str, Any] | None, jobs: Sequence[TensorJob]) -> dict[str, Any] | None:
    """The configuration with what readers must know about blocks; as it is if no job has scales."""
    if config is None or not any(job.scales is not None for job in jobs):
        return config
    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [_BLOCK, _BLOCK],
        "modules_to_not_convert": list(dict.fromkeys(_unquantised(jobs))),
    }
    return {**config, "quantization_config": settings}


def _unquantised(jobs: Sequence[TensorJob]) -> Iterator[str]:
    """Modules that readers must not expect in blocks; each name stands for all modules below it too."""
    stored = [_module(job.name) for job in jobs if job.scales is not None]
    above = {module[: dot.start()] for module in stored for dot in re.finditer(r"\.", module)}
    for job in jobs:
        module = _module(job.name)
        matrix = DTYPES[job.dtype].floating and len(job.shape) > 1 and job.scales is None
        if not matrix or not module or module in above:
            continue
        # Readers also take a name for the end of longer ones.
        alone = "." in module or not any(other.endswith(module) for other in stored)
        yield module if alone else f"^{module}$"
    if not any(module.endswith(".experts") for module in stored):
        # Whatever the files call the tensors, in transformers the experts of a layer are one module.
        yield ".experts"
    if not any(_module(job.name).endswith("lm_head") for job in jobs):
        yield from (name for name in _TIED if not any(module.endswith(name) for module in stored))


def _module(name: str) -> str:
    """The module that a tensor belongs to; of an expert, all experts of the layer."""
    experts = _EXPERTS.fullmatch(name)
    return experts["module"] if experts is not None else name.rpartition(".")[0]
