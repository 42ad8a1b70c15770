"""What goes wrong with merges: recipes and models that are broken or unwise, and what meldkit says.

Every case is of a kind that users have reported. `tests/test_diagnostics.py` runs them all, and
docs/diagnostics.md is written from this table.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
import word_tokenizers
from gguf_files import LLAMA_KEYS, llama_tensors, write_gguf

Kind = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Case:
    """Something that users do, in a folder with the models base, a, b and c; see `make_models`.

    Attributes:
        name: what is wrong.
        recipe: text of recipe.yml.
        says: the message, whole; PATH stands for the folder.
        status: how the command ends; 0 of what is done all the same.
        kind: how the message is told.
        models: what is done to the models before.
        command: what is run; `plan` must find it, unless values or the output folder are needed.
        options: of the command.
        symptom: what users saw where nothing was said, or something else.
        seen: a place where they reported it.
    """

    name: str
    recipe: str
    says: str
    status: int = 2
    kind: Kind = "error"
    models: Callable[[], object] | None = None
    command: Literal["plan", "merge"] = "plan"
    options: tuple[str, ...] = ()
    symptom: str = ""
    seen: str = ""


def make_models(folder: Path) -> None:
    """A base and three fine-tunes of it: Llamas of 4 layers, as transformers saves them."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        tiny.llama(folder / name, seed)


# What users do to models.


def config(model: str, **changes: object) -> None:
    """Change config.json; None takes a key out."""
    path = Path(model, "config.json")
    settings: dict[str, Any] = json.loads(path.read_text())
    settings |= changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def weights(model: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change tensors."""
    tensors = tiny.tensors(Path(model))
    change(tensors)
    save_file(tensors, Path(model, "model.safetensors"), metadata={"format": "pt"})


def cast(model: str, dtype: torch.dtype) -> None:
    weights(model, lambda w: w.update({name: t.to(dtype) for name, t in w.items()}))
    config(model, dtype=str(dtype).removeprefix("torch."))


def resized(model: str, rows: int) -> None:
    """The embedding and the head with more rows, as after adding tokens."""
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    weights(
        model,
        lambda w: w.update({n: torch.cat([w[n], w[n].new_zeros(rows - len(w[n]), 32)]) for n in tables}),
    )
    config(model, vocab_size=rows)


def sharded(model: str) -> list[str]:
    """In three files, as large models are; the names of these."""
    path = Path(model, "model.safetensors")
    tensors = tiny.tensors(Path(model))
    path.unlink()
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    weight_map: dict[str, str] = {}
    for number, name in enumerate(names):
        part = dict(list(tensors.items())[number::3])
        save_file(part, Path(model, name), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    Path(model, "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def tokenizer(
    model: str, words: Mapping[str, int] | None = None, *, added: tuple[str, ...] = (), **settings: object
) -> None:
    """A tokenizer of 60 words, or of these."""
    words = words or {"<unk>": 0, **{f"w{n}": n for n in range(1, 60)}}
    Path(model, "tokenizer.json").write_text(json.dumps(word_tokenizers.content(words, added)))
    loader = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    Path(model, "tokenizer_config.json").write_text(json.dumps(loader))


def ends_with(model: str, token: int) -> None:
    """The token with which a model ends its texts."""
    config(model, eos_token_id=token)
    Path(model, "generation_config.json").write_text(json.dumps({"eos_token_id": token}))


def lora(
    name: str = "lora", *, base: str | None = "org/base", rows: int = 32, module: str = "q_proj"
) -> None:
    """An adapter for the models."""
    folder = tiny.adapter(Path(name), {f"model.layers.0.self_attn.{module}": (rows, 32)})
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))


def mixture(model: str, experts: int) -> None:
    """A mixture of experts of two layers instead of the model."""
    names = [f"model.layers.{i}.block_sparse_moe.experts.{e}.w1" for i in range(2) for e in range(experts)]
    extra = {f"{name}.weight": torch.ones(8, 4) for name in names}
    extra |= {f"model.layers.{i}.block_sparse_moe.gate.weight": torch.ones(experts, 4) for i in range(2)}
    shutil.rmtree(model)
    tiny.decoder(
        Path(model),
        extra=extra,
        architectures=["MixtralForCausalLM"],
        model_type="mixtral",
        num_local_experts=experts,
        num_experts_per_tok=2,
    )


def split_gguf(folder: str) -> list[str]:
    """A GGUF model in three files; the names of these."""
    Path(folder).mkdir()
    write_gguf(Path(folder, "m.gguf"), "llama", LLAMA_KEYS, llama_tensors(), each=4)
    return sorted(path.name for path in Path(folder).iterdir())


def huge() -> None:
    """A model of eight terabytes that take no room."""
    header = {"w": {"dtype": "F32", "shape": [2**41], "data_offsets": [0, 2**43]}}
    text = json.dumps(header).encode()
    Path("big").mkdir()
    Path("big/config.json").write_text("{}")
    Path("big/model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate("big/model.safetensors", 8 + len(text) + 2**43)


def lfs_pointer(path: str) -> None:
    """What a clone without git-lfs leaves."""
    size = Path(path).stat().st_size if Path(path).exists() else 1000
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n"
    Path(path).write_text(text)


LINEAR = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n"
LINEAR_B = LINEAR + "- {model: b, parameters: {weight: 0.5}}\n"
TIES = "merge_method: ties\nbase_model: base\nparameters: {density: 0.5}\nmodels:\n"
TIES += "- {model: a, parameters: {weight: 0.5}}\n- {model: b, parameters: {weight: 0.5}}\n"
SLERP = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters:\n  t: "
STACK = "merge_method: passthrough\nslices:\n"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA2 = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
TRACKER = "https://github.com/arcee-ai/mergekit/issues"


def arithmetic(method: str = "task_arithmetic", a: str = "weight: 0.5", b: str = "weight: 0.5") -> str:
    """A recipe of task vectors, with these parameters of a and b."""
    return (
        f"merge_method: {method}\nbase_model: base\nmodels:\n- model: a\n  parameters: {{{a}}}\n"
        f"- model: b\n  parameters: {{{b}}}\n"
    )


def stack(*slices: str) -> str:
    """A recipe that stacks layers, given as "model first end"."""
    entries = (each.split() for each in slices)
    return STACK + "".join(f"- sources: [{{model: {m}, layer_range: [{i}, {j}]}}]\n" for m, i, j in entries)


def beside(*ranges: str) -> str:
    """A linear recipe of one slice of a and b, with these ranges."""
    sources = "".join(
        f"  - {{model: {m}, layer_range: {r}}}\n" for m, r in zip(("a", "b"), ranges, strict=True)
    )
    return f"merge_method: linear\nparameters: {{weight: 0.5}}\nslices:\n- sources:\n{sources}"


TABLE: dict[str, tuple[Case, ...]] = {
    "Writing a recipe": (
        Case(
            "a tab indents a line",
            "merge_method: linear\nmodels:\n\t- model: a\n",
            "recipe.yml:3:1: not valid YAML: while scanning for the next token, found character that "
            "cannot start any token\n"
            "  YAML does not allow tabs for indentation; use spaces",
        ),
        Case(
            "text after a colon that needs quotes, or an indent too deep",
            "merge_method: linear\n  models: [{model: a}]\n",
            "recipe.yml:2:9: not valid YAML: mapping values are not allowed in this context\n"
            "  check the indentation, and put quotes around text that contains ': '",
        ),
        Case(
            "a key stands twice",
            LINEAR_B + "dtype: float16\nmerge_method: ties\n",
            "recipe.yml:6: key 'merge_method' stands here a second time; first at recipe.yml:1\n"
            "  keep one of them; entries of a list begin with '- '",
        ),
        Case(
            "an empty file",
            "",
            "recipe.yml: the recipe is empty\n  it needs at least 'merge_method:' and 'models:'",
        ),
        Case(
            "a misspelt method",
            TIES.replace("ties", "dare-tie"),
            "recipe.yml:1: unknown merge_method 'dare-tie'\n  did you mean 'dare_ties'?",
        ),
        Case(
            "a misspelt parameter",
            LINEAR_B.replace("weight: 0.5}}\n- {model: b", "wieght: 0.5}}\n- {model: b"),
            "recipe.yml:3: unknown parameter 'wieght'\n  did you mean 'weight'?",
        ),
        Case(
            "a misspelt key",
            LINEAR_B.replace("models", "model"),
            "recipe.yml:2: unknown key 'model' in the recipe\n"
            "  it belongs in an entry of 'models' or in an entry of 'sources'",
        ),
        Case(
            "parameters that are not indented below `parameters:`",
            "merge_method: linear\nmodels:\n  - model: a\n    parameters:\n    weight: 1.0\n",
            "recipe.yml:3: parameter 'weight' is missing for tensor 'lm_head.weight' of model 'a'\n"
            "  recipe.yml:5: here it has no effect; indent it, below the model's own 'parameters:', or "
            "the slice's or the recipe's 'parameters:'",
            symptom="Missing required parameter weight",
            seen=f"{TRACKER}/248",
        ),
        Case(
            "`models:` and `slices:` at once",
            LINEAR_B + "slices:\n- sources: [{model: a, layer_range: [0, 4]}]\n",
            "recipe.yml:5: 'models' and 'slices' cannot stand together\n  keep exactly one of them",
        ),
        Case(
            "neither `models:` nor `slices:`",
            "merge_method: linear\nparameters: {weight: 1}\n",
            "recipe.yml:1: 'models', 'slices' or 'modules' is missing\n"
            "  list the models to merge, below 'models:'",
        ),
        Case(
            "no method: a recipe for a mixture of experts",
            "base_model: base\ngate_mode: hidden\nexperts:\n- {source_model: a, positive_prompts: [code]}\n",
            "recipe.yml says how a mixture of experts is made, not how models are merged\n"
            "  'meldkit moe' reads such files",
            seen=f"{TRACKER}/101",
        ),
        Case(
            "a model that is not an entry of its own",
            "merge_method: linear\nmodels:\n- a\n- b\n",
            "recipe.yml:3: an entry of 'models' must be a mapping, got the text 'a'\n"
            "  write 'model: a'; keys here: model, parameters\n"
            "recipe.yml:4: an entry of 'models' must be a mapping, got the text 'b'\n"
            "  write 'model: b'; keys here: model, parameters",
        ),
        Case(
            "`models:` without dashes",
            "merge_method: linear\nmodels:\n  model: a\n",
            "recipe.yml:2: 'models' must be a list, got a mapping (keys and values)\n"
            "  begin each entry with '- '",
        ),
        Case(
            "a slice without `sources:`",
            "merge_method: passthrough\nslices:\n- {model: a, layer_range: [0, 4]}\n",
            "recipe.yml:3: unknown key 'model' in an entry of 'slices'\n"
            "  it belongs in an entry of 'models' or in an entry of 'sources'",
        ),
        Case(
            "a slice without a layer_range",
            "merge_method: passthrough\nslices:\n- sources: [{model: a}]\n",
            "recipe.yml:3: 'layer_range' is missing in an entry of 'sources'\n"
            "  keys here: model, layer_range, parameters",
        ),
        Case(
            "`layer_range:` of whole models",
            LINEAR_B.replace("{model: b,", "{model: b, layer_range: [0, 2],"),
            "recipe.yml:4: 'layer_range' here has no effect; layers are chosen under 'slices:'",
            status=0,
            kind="warning",
        ),
        Case(
            "a layer_range as text",
            stack("a 0 4").replace("[0, 4]", "0-4"),
            "recipe.yml:3: 'layer_range' must be two whole numbers, got the text '0-4'\n"
            "  write [first, end], where 'end' is one past the last layer: [0, 8] is layers 0 to 7",
        ),
        Case(
            "`normalize:` at the top level",
            LINEAR_B + "normalize: true\n",
            "recipe.yml:5: 'normalize' here has no effect; write it under 'parameters:'",
            status=0,
            kind="warning",
            seen="https://github.com/allenai/open-instruct/issues/463",
        ),
        Case(
            "`dtype:` among the parameters",
            LINEAR_B + "parameters: {dtype: bfloat16}\n",
            "recipe.yml:5: 'dtype' here has no effect; write it at the top level of the recipe",
            status=0,
            kind="warning",
        ),
        Case(
            "`base_model:` among the parameters",
            TIES.replace("base_model: base\nparameters: {", "parameters: {base_model: base, "),
            "recipe.yml:3: ties needs a base_model\n"
            "  recipe.yml:2: move 'base_model' from 'parameters:' to the top level",
        ),
        Case(
            "a misspelt dtype",
            LINEAR_B + "dtype: bfloat\n",
            "recipe.yml:5: unknown dtype 'bfloat'\n  did you mean 'bfloat16'?",
            seen=f"{TRACKER}/398",
        ),
        Case(
            "a dtype that is a kind of quantisation",
            LINEAR_B + "dtype: int4\n",
            "recipe.yml:5: unknown dtype 'int4'\n  known: float32, float16, bfloat16, float64, float8_e4m3fn",
        ),
        Case(
            "a value left out",
            LINEAR_B.replace("weight: 0.5}}\n- {model: b", "weight: }}\n- {model: b"),
            "recipe.yml:3: parameter 'weight': the value is missing\n"
            "  write it after the colon, or leave the parameter out",
        ),
        Case(
            "two lists, one in the other",
            SLERP + "[[0, 1], [1, 0]]\n",
            "recipe.yml:5: parameter 't': a gradient cannot hold another list\n"
            "  write one flat list of numbers",
        ),
        Case(
            "several recipes in one file, none of which uses another",
            f"{LINEAR_B}---\n{LINEAR_B}",
            "recipe.yml:6: a second recipe without a name; the first is at recipe.yml:1\n"
            "  give all but the last a 'name', by which others use what they give",
        ),
        Case(
            "the tokenizer is set twice",
            LINEAR_B + "tokenizer_source: base\ntokenizer: {source: union}\n",
            "recipe.yml:5: 'tokenizer_source' and 'tokenizer' (recipe.yml:6) are both given\n"
            "  'tokenizer: {source: ...}' says all that 'tokenizer_source' can; keep that one",
        ),
    ),
    "Parameters": (
        Case(
            "no weight",
            LINEAR + "- model: b\n",
            "recipe.yml:4: parameter 'weight' is missing for tensor 'lm_head.weight' of model 'b'\n"
            "  give it under the model's own 'parameters:', or the slice's or the recipe's "
            "'parameters:'; if it has filters, end them with a plain 'value:'",
            symptom="Missing required parameter weight for … model.embed_tokens.weight",
            seen=f"{TRACKER}/21",
        ),
        Case(
            "a parameter of another method",
            SLERP + "0.5\n  density: 0.5\n",
            "recipe.yml:6: 'density' has no effect: slerp does not use it; ties, dare_linear, dare_ties "
            "would",
            status=0,
            kind="warning",
        ),
        Case(
            "a parameter of the whole under one model",
            LINEAR_B.replace("b, parameters: {", "b, parameters: {normalize: false, "),
            "recipe.yml:4: 'normalize' has no effect under a model: it is one value for the whole "
            "tensor; write it under the recipe's or the slice's 'parameters:'",
            status=0,
            kind="warning",
        ),
        Case(
            "parameters of the base",
            TIES + "- {model: base, parameters: {weight: 0.5}}\n",
            "recipe.yml:7: the parameters of base_model 'base' have no effect: ties merges the others' "
            "differences from it",
            status=0,
            kind="warning",
            seen=f"{TRACKER}/230",
        ),
        Case(
            "a density in percent",
            TIES.replace("0.5", "50", 1),
            "recipe.yml:3: density: 50.0 is not valid; it must be 0 to 1\n  it is a share: 50 % is 0.5",
        ),
        Case(
            "a density of 0",
            arithmetic("dare_ties", "weight: 0.5, density: 0"),
            "recipe.yml:5: density 0 keeps nothing of 'a', which then has no effect; leave the model out",
            status=0,
            kind="warning",
        ),
        Case(
            "a density of 1, so that nothing is dropped",
            arithmetic("dare_linear", "weight: 0.5, density: 1", "weight: 0.5, density: 1"),
            "recipe.yml:5: density is 1 for every model, so dare_linear drops nothing; give a density "
            "below 1",
            status=0,
            kind="warning",
            seen=f"{TRACKER}/169",
        ),
        Case(
            "a decimal comma",
            SLERP + "'0,5'\n",
            "recipe.yml:5: t: '0,5' is not valid; it must be any number\n  write 0.5",
        ),
        Case(
            "a weight in percent",
            LINEAR_B.replace("weight: 0.5}}\n- {model: b", "weight: 50%}}\n- {model: b"),
            "recipe.yml:3: weight: '50%' is not valid; it must be any number\n  write 0.5",
        ),
        Case(
            "t beyond 1",
            SLERP + "1.5\n",
            "recipe.yml:5: t is 1.5 for tensor 'lm_head.weight', but slerp is meant for 0 to 1",
            status=0,
            kind="warning",
        ),
        Case(
            "t in percent",
            SLERP + "50\n",
            "recipe.yml:5: t is 50 for tensor 'lm_head.weight', but slerp is meant for 0 to 1",
            status=0,
            kind="warning",
        ),
        Case(
            "t of nearswap as of slerp",
            "merge_method: nearswap\nbase_model: base\nparameters: {t: 0.5}\nmodels: [{model: a}]\n",
            "recipe.yml:3: t is 0.5 for tensor 'lm_head.weight', but nearswap is meant for 0 to 0.1",
            status=0,
            kind="warning",
        ),
        Case(
            "t that is 0 or 1 everywhere",
            SLERP + "1\n",
            "recipe.yml:5: t is 1 for every tensor, so the output is 'b' as it is",
            status=0,
            kind="warning",
        ),
        Case(
            "weights that sum to 0",
            LINEAR_B.replace("weight: 0.5}}\n- {model: b", "weight: -0.5}}\n- {model: b"),
            "recipe.yml:1: tensor 'lm_head.weight': weight: [-0.5, 0.5] sum to 0, which cannot be "
            "normalized; change one",
        ),
        Case(
            "weights that sum to 3, and are not normalized",
            LINEAR_B.replace("0.5", "1.5") + "parameters: {normalize: false}\n",
            "recipe.yml:3: the weights sum to 3 and are not normalized, so the output is 3 times a mean; "
            "write 'normalize: true', or weights that sum to 1",
            status=0,
            kind="warning",
        ),
        Case(
            "task vectors added up many times",
            arithmetic(a="weight: 2", b="weight: 1.5"),
            "recipe.yml:5: the weights sum to 3.5, and models rarely stand task vectors of more than 2 "
            "in sum; take smaller weights, or 'normalize: true'",
            status=0,
            kind="warning",
        ),
        Case(
            "negative weights that are normalized",
            arithmetic("ties", "weight: 1", "weight: -0.5"),
            "recipe.yml:5: the negative weight -0.5 is divided by the sum of weights, which may turn its "
            "sign; write 'normalize: false' to subtract a model",
            status=0,
            kind="warning",
            seen=f"{TRACKER}/213",
        ),
        Case(
            "all weights are 0",
            arithmetic(a="weight: 0", b="weight: 0"),
            "recipe.yml:5: every weight is 0, so the output is 'base' as it is",
            status=0,
            kind="warning",
        ),
        Case(
            "a lambda of 0",
            arithmetic() + "parameters: {lambda: 0}\n",
            "recipe.yml:8: lambda is 0, so the output is 'base' as it is",
            status=0,
            kind="warning",
        ),
        Case(
            "a scale of 0 on everything",
            "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: 0}}]\n",
            "recipe.yml:2: scale 0 makes 'lm_head.weight' all zeros; give it a filter such as o_proj",
            status=0,
            kind="warning",
        ),
        Case(
            "gamma and density that leave nothing between",
            arithmetic("breadcrumbs", "weight: 0.5, density: 0.9, gamma: 0.2", "weight: 0.5, density: 0.9"),
            "recipe.yml:5: gamma 0.2 and density 0.9 of 'a' sum to more than 1, so only the largest 0.1 "
            "are dropped; take smaller ones",
            status=0,
            kind="warning",
        ),
        Case(
            "an epsilon too wide",
            arithmetic("della", "weight: 0.5, density: 0.3, epsilon: 0.4", "weight: 0.5, density: 0.5"),
            "recipe.yml:1: tensor 'lm_head.weight': density 0.3 with epsilon 0.4: probabilities -0.1 to "
            "0.7 leave the range from 0 to 1; take a smaller epsilon",
        ),
        Case(
            "select_topk as a number of elements",
            TIES.replace("ties", "sce")
            .replace("{density: 0.5}", "{select_topk: 10}")
            .replace(", parameters: {weight: 0.5}", ""),
            "recipe.yml:3: select_topk: 10.0 is not valid; it must be 0 to 1\n  it is a share: 10 % is 0.1",
        ),
        Case(
            "a filter that matches nothing",
            SLERP + "\n  - {filter: self_atn, value: 0.3}\n  - {value: 0.5}\n",
            "recipe.yml:5: filter 'self_atn' of 't' matches no tensor; did you mean 'self_attn'?",
            status=0,
            kind="warning",
        ),
        Case(
            "a pattern as a filter",
            SLERP + "\n  - {filter: layers.*.mlp, value: 0.3}\n  - {value: 0.5}\n",
            "recipe.yml:5: filter 'layers.*.mlp' of 't' matches no tensor; to have it taken for a "
            "pattern, begin it with 're:' or 'glob:'",
            status=0,
            kind="warning",
        ),
        Case(
            "an entry without a filter before others",
            SLERP + "\n  - {value: 0.5}\n  - {filter: mlp, value: 0.3}\n",
            "recipe.yml:5: filter 'mlp' of 't' is never looked at, because an entry without a filter "
            "stands before it; move that one to the end",
            status=0,
            kind="warning",
        ),
        Case(
            "filters without a value for the rest",
            SLERP + "\n  - {filter: self_attn, value: 0.3}\n  - {filter: mlp, value: 0.5}\n",
            "recipe.yml:1: parameter 't' is missing for tensor 'lm_head.weight'\n"
            "  give it under the slice's or the recipe's 'parameters:'; if it has filters, end them with "
            "a plain 'value:'",
            seen=f"{TRACKER}/21",
        ),
        Case(
            "a misspelt key beside a filter",
            SLERP + "\n  - {filter: mlp, vlaue: 0.5}\n",
            "recipe.yml:6: parameter 't': unknown key 'vlaue' in a filtered value\n"
            "  did you mean 'value'? keys here: filter, value",
        ),
        Case(
            "a gradient that reaches the embedding and lm_head",
            SLERP + "[0.1, 0.5, 0.9]\n",
            "recipe.yml:5: the gradient of 't' also reaches lm_head.weight, model.embed_tokens.weight "
            "and 1 more, which stand outside the layers and take its first value; to leave them out, put "
            "it under a filter such as 'layers', and give the rest a value",
            status=0,
            kind="warning",
            seen=f"{TRACKER}/308",
        ),
        Case(
            "a regular expression that is none",
            SLERP + "\n  - {filter: 're:mlp(', value: 0.3}\n  - {value: 0.5}\n",
            "recipe.yml:6: parameter 't': filter 're:mlp(' is not a valid regular expression: missing ), "
            "unterminated subpattern at position 3\n"
            "  leave out 're:' for text that is to be found as it is",
        ),
        Case(
            "text for a switch",
            LINEAR_B + "parameters: {normalize: maybe}\n",
            "recipe.yml:5: normalize: 'maybe' is not valid; it must be true or false",
        ),
    ),
    "Methods and models": (
        Case(
            "no base model",
            TIES.replace("base_model: base\n", ""),
            "recipe.yml:3: ties needs a base_model\n  add the line 'base_model: …' at the top level",
        ),
        Case(
            "slerp of three models",
            SLERP.replace("{model: b}", "{model: b}, {model: c}") + "0.5\n",
            "recipe.yml:3: slerp takes exactly 2 models, got 3: a, b, c\n"
            "  leave some out, or take a method for any number: linear, multislerp, karcher",
        ),
        Case(
            "slerp whose base_model is the common ancestor",
            SLERP.replace("base_model: a", "base_model: base") + "0.5\n",
            "recipe.yml:3: slerp takes exactly 2 models, got 3: base, a, b\n"
            "  base_model is one of the models that slerp takes; set it to one of those listed",
            symptom="Tensor score.weight required but not present in model",
            seen=f"{TRACKER}/173",
        ),
        Case(
            "slerp without base_model",
            SLERP.replace("base_model: a\n", "") + "0.5\n",
            "recipe.yml:2: slerp needs a base_model\n  add the line 'base_model: …' at the top level",
        ),
        Case(
            "passthrough of two models in one slice",
            STACK + "- sources:\n  - {model: a, layer_range: [0, 2]}\n  - {model: a, layer_range: [2, 4]}\n",
            "recipe.yml:3: passthrough takes exactly 1 model, got 2: a, a\n"
            "  for layers one after the other, give each source a slice of its own: '- sources: …'",
            seen=f"{TRACKER}/354",
        ),
        Case(
            "model_stock of one model",
            "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}]\n",
            "recipe.yml:3: model_stock takes at least 2 models besides the base, got 1: a\n"
            "  list more models",
        ),
        Case(
            "nearswap of two models",
            "merge_method: nearswap\nbase_model: base\n"
            "parameters: {t: 0.001}\nmodels: [{model: a}, {model: b}]\n",
            "recipe.yml:4: nearswap takes exactly 1 model besides the base, got 2: a, b\n"
            "  leave some out, or take a method for any number: task_arithmetic, ties, dare_linear",
        ),
        Case(
            "nearswap without t",
            "merge_method: nearswap\nbase_model: base\nmodels: [{model: a}]\n",
            "recipe.yml:1: parameter 't' is missing for tensor 'lm_head.weight'\n"
            "  give it under the slice's or the recipe's 'parameters:'; if it has filters, end them with "
            "a plain 'value:'",
        ),
        Case(
            "arcee_fusion of three models",
            "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: a}, {model: b}]\n",
            "recipe.yml:3: arcee_fusion takes exactly 2 models, got 3: base, a, b\n"
            "  base_model is one of the models that arcee_fusion takes; set it to one of those listed",
        ),
        Case(
            "nothing but the base",
            "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\nmodels: [{model: base}]\n",
            "recipe.yml:4: ties takes at least 1 model besides the base, got 0\n"
            "  list the models to merge, besides the base",
        ),
        Case(
            "the base under another name among the models",
            TIES.replace("model: b,", "model: ./base,"),
            "recipe.yml:6: model './base' has the files of 'base', the base_model, so its task vector is "
            "0; leave one out, or name another model",
            status=0,
            kind="warning",
        ),
        Case(
            "a model is listed twice",
            LINEAR_B.replace("model: b,", "model: a,"),
            "recipe.yml:4: model 'a' is listed a second time; leave one out, or name another model",
            status=0,
            kind="warning",
            seen=f"{TRACKER}/96",
        ),
        Case(
            "the same model in two folders",
            LINEAR_B,
            "recipe.yml:4: model 'b' has the files of 'a'; leave one out, or name another model",
            status=0,
            kind="warning",
            models=lambda: (shutil.rmtree("b"), Path("b").symlink_to("a")),
        ),
        Case(
            "the base is not among the sources of a slice",
            beside("[0, 4]", "[0, 4]").replace("linear", "ties\nbase_model: base"),
            "recipe.yml:5: base_model 'base' is not among the sources of this slice\n"
            "  list it with the layer_range that the others are compared with",
        ),
        Case(
            "a misspelt module",
            "merge_method: linear\nparameters: {weight: 1}\n"
            "modules:\n  text_decodr: {models: [{model: a}]}\n",
            "model 'a' has no part called 'text_decodr'; did you mean 'text_decoder'?\n"
            "  its parts are text_decoder",
            status=3,
        ),
    ),
    "Layers": (
        Case(
            "layers beyond the last one",
            stack("a 0 2", "b 2 5"),
            "recipe.yml:4: layer_range [2, 5] of model 'b', which has 4 layers\n"
            "  the end is not included: all layers are [0, 4]",
            symptom="Tensor model.layers.60… required but not present in model",
            seen=f"{TRACKER}/12",
        ),
        Case(
            "a range backwards",
            stack("a 2 0"),
            "recipe.yml:3: 'layer_range' [2, 0] is not a range of layers\n"
            "  write [first, end], where 'end' is one past the last layer: [0, 8] is layers 0 to 7",
        ),
        Case(
            "ranges of unequal length",
            beside("[0, 4]", "[0, 3]"),
            "recipe.yml:6: layer_range [0, 3] has 3 layers, but [0, 4] of the same slice (recipe.yml:5) "
            "has 4 layers\n"
            "  all sources of a slice need equally many layers",
            seen=f"{TRACKER}/354",
        ),
        Case(
            "the last layer is left out, because the end of a range is not included",
            beside("[0, 3]", "[0, 3]"),
            "recipe.yml:5: layer_range [0, 3] leaves out the last layer; the end is not included: all "
            "are [0, 4]",
            status=0,
            kind="warning",
            seen=f"{TRACKER}/398",
        ),
        Case(
            "the first layer is left out, because layers are counted from 0",
            beside("[1, 4]", "[1, 4]"),
            "recipe.yml:5: layer_range [1, 4] leaves out the first layer; layers are counted from 0",
            status=0,
            kind="warning",
        ),
        Case(
            "a layer between two ranges is left out",
            stack("a 0 1", "b 2 4"),
            "recipe.yml:4: layer_range [2, 4] leaves out layer 1; the end of the range before it is not "
            "included",
            status=0,
            kind="warning",
            seen=f"{TRACKER}/12",
        ),
        Case(
            "no layer at all",
            stack("a 0 0"),
            "no layer is left in the output; look at the layer_range of each source",
            status=0,
            kind="warning",
        ),
        Case(
            "models of different depth",
            LINEAR_B,
            "model 'b' has 6 blocks model.layers.*, 'a' has 4\n"
            "  use 'slices:' with a layer_range to say which layers to merge",
            status=3,
            models=lambda: tiny.llama(Path("b"), 1, layers=6),
        ),
        Case(
            "a model without layers",
            stack("b 0 1"),
            "model 'b' has no stack of numbered layers, so layer_range has no meaning\n"
            "  merge whole models with 'models:' instead",
            status=3,
            models=lambda: tiny.stored(Path("b"), {"w": torch.ones(2)}, {}),
        ),
    ),
    "Models that do not fit together": (
        Case(
            "another architecture",
            LINEAR_B,
            "model 'b' is a GPT2LMHeadModel, 'a' is a LlamaForCausalLM\n"
            "  --allow-crimes merges them all the same if tensors of equal names have equal shapes",
            status=3,
            models=lambda: tiny.gpt2(Path("b"), 1),
            symptom="Tensor transformer.h.0.… required but not present in model",
            seen=f"{TRACKER}/324",
        ),
        Case(
            "another architecture, though merged by force",
            LINEAR_B,
            "model 'a' lacks 40 of 79 tensors, the first is 'transformer.h.0.attn.c_attn.bias'\n"
            "  its own tensors have names like 'lm_head.weight'; the models are of different kinds",
            status=3,
            models=lambda: tiny.gpt2(Path("b"), 1),
            options=("--allow-crimes",),
        ),
        Case(
            "another hidden size",
            LINEAR_B,
            "tensor 'lm_head.weight' has shape [64, 32] in 'a' and [64, 64] in 'b'; 38 more of 39 "
            "tensors do not fit: 'model.embed_tokens.weight' [64, 32] and [64, 64], "
            "'model.layers.0.input_layernorm.weight' [32] and [64], …\n"
            "  models can be merged only where their tensors have equal shapes",
            status=3,
            models=lambda: tiny.llama(Path("b"), 1, hidden=64),
        ),
        Case(
            "another size of the feed-forward layers",
            LINEAR_B,
            "tensor 'model.layers.0.mlp.gate_proj.weight' has shape [64, 32] in 'a' and [128, 32] in "
            "'b'; 7 more of 39 tensors do not fit: 'model.layers.0.mlp.up_proj.weight' [64, 32] and "
            "[128, 32], 'model.layers.1.mlp.gate_proj.weight' [64, 32] and [128, 32], …\n"
            "  models can be merged only where their tensors have equal shapes",
            status=3,
            models=lambda: weights(
                "b",
                lambda w: w.update(
                    {n: torch.cat([t, t]) for n, t in w.items() if "up_proj" in n or "gate_proj" in n}
                ),
            ),
            symptom="Tensor size mismatch for model.layers.0.mlp.down_proj.weight",
            seen=f"{TRACKER}/211",
        ),
        Case(
            "another number of key and value heads",
            LINEAR_B,
            "tensor 'model.layers.0.self_attn.k_proj.weight' has shape [16, 32] in 'a' and [32, 32] in "
            "'b'; 7 more of 39 tensors do not fit: 'model.layers.0.self_attn.v_proj.weight' [16, 32] and "
            "[32, 32], 'model.layers.1.self_attn.k_proj.weight' [16, 32] and [32, 32], …\n"
            "  models can be merged only where their tensors have equal shapes",
            status=3,
            models=lambda: (
                weights(
                    "b",
                    lambda w: w.update(
                        {n: torch.cat([t, t]) for n, t in w.items() if "k_proj" in n or "v_proj" in n}
                    ),
                ),
                config("b", num_key_value_heads=4),
            ),
        ),
        Case(
            "another number of heads, though all tensors have equal shapes",
            LINEAR_B,
            "'b' has num_attention_heads 8, num_key_value_heads 4, 'a' num_attention_heads 4, "
            "num_key_value_heads 2, which the output gets; models of one base agree in this, so look "
            "where these come from",
            status=0,
            kind="warning",
            models=lambda: config("b", num_attention_heads=8, num_key_value_heads=4),
        ),
        Case(
            "more experts",
            LINEAR_B,
            "tensor 'model.layers.0.block_sparse_moe.gate.weight' has shape [4, 4] in 'a' and [8, 4] in "
            "'b'; 1 more of 27 tensors do not fit: 'model.layers.1.block_sparse_moe.gate.weight' [4, 4] "
            "and [8, 4]\n"
            "  models can be merged only where their tensors have equal shapes",
            status=3,
            models=lambda: (mixture("a", 4), mixture("b", 8)),
        ),
        Case(
            "another number of experts that are asked for each token",
            LINEAR_B,
            "'b' has num_experts_per_tok 1, 'a' num_experts_per_tok 2, which the output gets; models of "
            "one base agree in this, so look where these come from",
            status=0,
            kind="warning",
            models=lambda: (mixture("a", 4), mixture("b", 4), config("b", num_experts_per_tok=1)),
        ),
        Case(
            "positions are encoded otherwise",
            LINEAR_B,
            "'b' has rope_theta 500000, 'a' rope_theta 10000, which the output gets; models of one base "
            "agree in this, so look where these come from",
            status=0,
            kind="warning",
            models=lambda: config("b", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}),
            symptom="the merged model does not work well",
            seen=f"{TRACKER}/325",
        ),
        Case(
            "the context was extended",
            LINEAR_B,
            "'b' has rope_scaling linear 4, 'a' no rope_scaling, which the output gets; models of one "
            "base agree in this, so look where these come from",
            status=0,
            kind="warning",
            models=lambda: config(
                "b",
                rope_parameters=None,
                rope_scaling={"type": "linear", "factor": 4.0},
                max_position_embeddings=256,
            ),
            seen=f"{TRACKER}/301",
        ),
        Case(
            "another generation of the same family",
            LINEAR_B,
            "'b' has rms_norm_eps 1e-05, 'a' rms_norm_eps 1e-06, which the output gets; models of one "
            "base agree in this, so look where these come from",
            status=0,
            kind="warning",
            models=lambda: config("b", rms_norm_eps=1e-5, max_position_embeddings=128),
            symptom="one character, again and again, up to the longest length",
            seen="https://github.com/yule-BUAA/MergeLM/issues/14",
        ),
        Case(
            "another activation function",
            LINEAR_B,
            "'b' has hidden_act gelu, 'a' hidden_act silu, which the output gets; models of one base "
            "agree in this, so look where these come from",
            status=0,
            kind="warning",
            models=lambda: config("b", hidden_act="gelu"),
        ),
        Case(
            "another sliding window",
            LINEAR_B,
            "'b' has sliding_window 32, 'a' sliding_window 16, which the output gets; models of one base "
            "agree in this, so look where these come from",
            status=0,
            kind="warning",
            models=lambda: (config("a", sliding_window=16), config("b", sliding_window=32)),
        ),
        Case(
            "a model with a head of its own, and one without",
            LINEAR_B,
            "lm_head.weight: left out; 'b' has a head of its own, but 'a', which the output is like, has "
            "its embedding for one. To keep the head, let the former be base_model, or stand first if there "
            "is none",
            status=0,
            kind="warning",
            models=lambda: (
                weights("a", lambda w: w.pop("lm_head.weight")),
                config("a", tie_word_embeddings=True),
            ),
            seen=f"{TRACKER}/390",
        ),
        Case(
            "texts end with another token",
            TIES,
            "'a' and 'b' end texts with token 5, the output like 'base' with 2, so that it may not stop; "
            "take the settings of one of them with 'tokenizer: {source: a}'",
            status=0,
            kind="warning",
            models=lambda: [(tokenizer(m), ends_with(m, n)) for m, n in (("base", 2), ("a", 5), ("b", 5))],
            symptom="the answer never ends",
        ),
        Case(
            "bfloat16 models written as float16",
            LINEAR_B + "dtype: float16\n",
            "recipe.yml:5: float16 ends at 65504, bfloat16 does not; a merge stops where a value does "
            "not fit",
            status=0,
            kind="note",
            models=lambda: (cast("a", torch.bfloat16), cast("b", torch.bfloat16)),
        ),
        Case(
            "tensors named otherwise: with another prefix",
            LINEAR_B,
            "the tensors of 'b' go by the names of 'a': embed_tokens.weight is model.embed_tokens.weight, …",
            status=0,
            kind="note",
            models=lambda: weights(
                "b", lambda w: [w.update({n.removeprefix("model."): w.pop(n)}) for n in list(w)]
            ),
            symptom="Tensor bert.encoder.layer.23.output.LayerNorm.weight required but not present in model",
            seen=f"{TRACKER}/284",
        ),
        Case(
            "a text model and one that also sees",
            LINEAR_B,
            "model 'b' is a LlavaForConditionalGeneration, 'a' is a LlamaForCausalLM\n"
            "  --allow-crimes merges them all the same if tensors of equal names have equal shapes",
            status=3,
            models=lambda: config("b", architectures=["LlavaForConditionalGeneration"], model_type="llava"),
            seen=f"{TRACKER}/576",
        ),
        Case(
            "a model that does not say its architecture is another one",
            LINEAR_B,
            "model 'a' lacks 40 of 79 tensors, the first is 'transformer.h.0.attn.c_attn.bias'\n"
            "  its own tensors have names like 'lm_head.weight'; the models are of different kinds",
            status=3,
            models=lambda: (tiny.gpt2(Path("b"), 1), config("b", architectures=None, model_type=None)),
        ),
    ),
    "Vocabularies and chat templates": (
        Case(
            "a model with tokens added",
            LINEAR_B,
            "the models have different vocabularies, so that rows of their embeddings do not belong "
            "together: 1 token only in 'b': '<pad>' (60)\n"
            "  add to the recipe the two lines\n"
            "    tokenizer:\n"
            "      source: union\n"
            "  to keep the tokens of all models (or 'source: base' for those of the base model only); "
            "--allow-crop merges rows of equal number",
            status=3,
            models=lambda: (tokenizer("a"), tokenizer("b", added=("<pad>",)), resized("b", 65)),
            symptom="The size of tensor a (32000) must match the size of tensor b (120128)",
            seen=f"{TRACKER}/47",
        ),
        Case(
            "embeddings of different size, and no tokenizer that could tell",
            LINEAR_B,
            "tensor 'lm_head.weight' has shape [64, 32] in 'a' and [65, 32] in 'b'; 1 more of 39 tensors "
            "do not fit: 'model.embed_tokens.weight' [64, 32] and [65, 32]\n"
            "  the vocabularies differ; copy each model's tokenizer into its folder, and add to the "
            "recipe 'tokenizer: {source: union}'",
            status=3,
            models=lambda: resized("b", 65),
            symptom="The size of tensor a (32000) must match the "
            "size of tensor b (32002) at non-singleton dimension 0",
            seen="https://github.com/allenai/open-instruct/issues/124",
        ),
        Case(
            "equal sizes, but other words",
            LINEAR_B,
            "the models have different vocabularies, so that rows of their embeddings do not belong "
            "together: 59 tokens only in 'a': 'w1' (1), 'w2' (2), 'w3' (3), …; 59 tokens only in 'b': "
            "'v1' (1), 'v2' (2), 'v3' (3), …\n"
            "  add to the recipe the two lines\n"
            "    tokenizer:\n"
            "      source: union\n"
            "  to keep the tokens of all models (or 'source: base' for those of the base model only); "
            "--allow-crop merges rows of equal number",
            status=3,
            models=lambda: (
                tokenizer("a"),
                tokenizer("b", {"<unk>": 0, **{f"v{n}": n for n in range(1, 60)}}),
            ),
            symptom="the merge ends without an error, and the model talks nonsense",
            seen=f"{TRACKER}/169",
        ),
        Case(
            "equal vocabularies, padded to different sizes",
            LINEAR_B,
            "the embeddings of 'b' have 128 rows, those of 'a' 64; the vocabularies are the same, and "
            "padding is the latter's",
            status=0,
            kind="note",
            models=lambda: (tokenizer("a"), tokenizer("b"), resized("b", 128)),
            seen=f"{TRACKER}/614",
        ),
        Case(
            "more tokens than the embedding has rows",
            LINEAR_B,
            "2 tokens of 'a' without a row in its embedding of 64 rows: '<4>' (64), '<5>' (65)",
            status=0,
            kind="warning",
            models=lambda: [tokenizer(m, added=tuple(f"<{n}>" for n in range(6))) for m in "ab"],
            symptom="token ids out of range, when the result is converted to GGUF",
            seen="https://blog.gitcode.com/b5f51f9aec7ab42e1477676777d9cf68.html",
        ),
        Case(
            "the tokenizer of another model",
            LINEAR_B,
            "the tokenizer of 'a' has 500 tokens, its embedding 64 rows\n"
            "  the tokenizer is that of another model; copy the right one into the model's folder",
            status=3,
            models=lambda: [tokenizer(m, {f"w{n}": n for n in range(500)}) for m in "ab"],
        ),
        Case(
            "a union without tokenizers",
            LINEAR_B + "tokenizer: {source: union}\n",
            "recipe.yml:5: 'a' has no tokenizer\n"
            "  copy the model's tokenizer into its folder, or leave out the tokenizer setting",
            status=3,
        ),
        Case(
            "a misspelt tokenizer source",
            LINEAR_B + "tokenizer_source: unoin\n",
            "model 'unoin' does not exist\n"
            "  looked for PATH/unoin; check the path in the recipe; a model of the Hugging Face Hub is "
            "written org/name",
            status=3,
            models=lambda: [tokenizer(m) for m in "ab"],
        ),
        Case(
            "a token that no model has",
            LINEAR_B + "tokenizer: {source: union, tokens: {'<|imstart|>': {source: a}}}\n",
            "recipe.yml:5: token '<|imstart|>': 'a' has no row for '<|imstart|>'\n"
            "  its embedding has 64 rows; see 'meldkit tokenizers' for what it has",
            models=lambda: [tokenizer(m, added=("<|im_start|>",)) for m in "ab"],
        ),
        Case(
            "the first model has no tokenizer, another has one",
            LINEAR_B,
            "'a' gives the tokenizer, but has none; copy the files of that of 'b' into its folder",
            status=0,
            kind="warning",
            models=lambda: tokenizer("b"),
        ),
        Case(
            "a chat template that does not work",
            LINEAR_B + "chat_template: '{% for m in messages %}{{ m.content }'\n",
            "recipe.yml:5: line 1 of the chat_template: unexpected '}'\n"
            "  the line is: {% for m in messages %}{{ m.content }",
            models=lambda: [tokenizer(m) for m in "ab"],
        ),
        Case(
            "a misspelt name of a chat template",
            LINEAR_B + "chat_template: chatlm\n",
            "recipe.yml:5: there is no chat_template named 'chatlm'\n"
            "  did you mean 'chatml'? names: auto, alpaca, chatml, exaone, llama3, mistral; anything "
            "else must be the text of a Jinja template, which has {{ … }} or {% … %} in it",
            models=lambda: [tokenizer(m) for m in "ab"],
        ),
        Case(
            "a chat template whose tokens the tokenizer lacks",
            LINEAR_B + "chat_template: chatml\n",
            "recipe.yml:5: the chat template writes <|im_start|>, <|im_end|>, which the tokenizer cuts "
            "into pieces, because it has no such token",
            status=0,
            kind="warning",
            models=lambda: [tokenizer(m) for m in "ab"],
        ),
        Case(
            "models that were trained with different chat templates",
            LINEAR_B,
            "'a' and 'b' were trained with different chat templates, <|im_start|> … and [INST] …; the "
            "output gets that of 'a', or the one named under 'chat_template:'",
            status=0,
            kind="warning",
            models=lambda: [tokenizer(m, chat_template=t) for m, t in (("a", CHATML), ("b", LLAMA2))],
        ),
        Case(
            "a tokenizer that git-lfs has not fetched",
            LINEAR_B,
            "b/tokenizer.json is a pointer of Git LFS, not the file itself, so its tokens are not "
            "compared with those of other models",
            status=0,
            kind="warning",
            models=lambda: (tokenizer("a"), tokenizer("b"), lfs_pointer("b/tokenizer.json")),
        ),
    ),
    "Files of models": (
        Case(
            "a misspelt path",
            LINEAR_B.replace("model: b", "model: ./models/mistral-7b"),
            "model './models/mistral-7b' does not exist\n"
            "  did you mean 'models/Mistral-7B'? looked for PATH/models/mistral-7b; check the path in "
            "the recipe",
            status=3,
            models=lambda: shutil.move("b", Path("models").mkdir() or "models/Mistral-7B"),
        ),
        Case(
            "a misspelt name in the current folder",
            LINEAR_B.replace("model: b", "model: bb"),
            "model 'bb' does not exist\n"
            "  did you mean 'b'? looked for PATH/bb; check the path in the recipe; a model of the "
            "Hugging Face Hub is written org/name",
            status=3,
        ),
        Case(
            "a path of Windows",
            LINEAR_B.replace("model: b", "model: C:\\models\\b"),
            "model 'C:\\models\\b' does not exist\n"
            "  that is a path of Windows; here folders are named like /home/you/models/name",
            status=3,
            seen=f"{TRACKER}/404",
        ),
        Case(
            "a misspelt folder, written as a model of the hub would be",
            LINEAR_B.replace("model: b", "model: models/mistral-7b"),
            "model 'models/mistral-7b' is neither a local path nor to be had from the Hugging Face Hub: "
            "HF_HUB_OFFLINE is set, and it is not in PATH/hub\n"
            "  did you mean 'models/Mistral-7B-v0.1'? unset HF_HUB_OFFLINE to download it, or name the "
            "folder that it was downloaded to with --transformers-cache or HF_HOME",
            status=3,
            models=lambda: shutil.move("b", Path("models").mkdir() or "models/Mistral-7B-v0.1"),
        ),
        Case(
            "a model of the hub that is not there",
            LINEAR_B.replace("model: b", "model: org/mistrall-7b"),
            "model 'org/mistrall-7b' is neither a local path nor to be had from the Hugging Face Hub: "
            "HF_HUB_OFFLINE is set, and it is not in PATH/hub\n"
            "  unset HF_HUB_OFFLINE to download it, or name the folder that it was downloaded to with "
            "--transformers-cache or HF_HOME",
            status=3,
        ),
        Case(
            "a folder that is not a model",
            LINEAR_B,
            "model 'b': b has neither model.safetensors nor model.safetensors.index.json\n"
            "  check the path in the recipe, and whether the download is complete",
            status=3,
            models=lambda: Path("b/model.safetensors").unlink(),
        ),
        Case(
            "the name of a weight file instead of the folder",
            LINEAR_B.replace("model: b", "model: b/config.json"),
            "b/config.json is no weight file that is known by its ending '.json'\n"
            "  name a model folder, or a file that ends in .safetensors, .gguf, .bin, .pt, .pth, .tar, "
            ".ckpt",
            status=3,
        ),
        Case(
            "a missing shard",
            LINEAR_B,
            "model 'b': model.safetensors.index.json names 'model-00002-of-00003.safetensors', which is "
            "not in b\n"
            "  download the missing shard",
            status=3,
            models=lambda: Path("b", sharded("b")[1]).unlink(),
        ),
        Case(
            "a missing index",
            LINEAR_B,
            "model 'b': b has neither model.safetensors nor model.safetensors.index.json, but "
            "model-00001-of-00003.safetensors, model-00002-of-00003.safetensors, "
            "model-00003-of-00003.safetensors\n"
            "  download the index of a sharded model, or name the one file that is meant",
            status=3,
            models=lambda: (sharded("b"), Path("b/model.safetensors.index.json").unlink()),
        ),
        Case(
            "shards of two downloads",
            LINEAR_B,
            "model 'b': model.safetensors.index.json places tensor 'model.embed_tokens.weight' in "
            "model-00002-of-00003.safetensors, which lacks it\n"
            "  index and shards are of different downloads; download the model into an empty folder",
            status=3,
            models=lambda: shutil.copy(Path("b", (n := sharded("b"))[0]), Path("b", n[1])),
        ),
        Case(
            "a download that was cut off",
            LINEAR_B,
            "b/model.safetensors is truncated: tensor 'model.layers.0.self_attn.o_proj.weight' ends at "
            "byte 51,304, the file has 50,000\n"
            "  download the file again, or check how it was written",
            status=3,
            models=lambda: os.truncate("b/model.safetensors", 50_000),
            symptom="Error while deserializing header: MetadataIncompleteBuffer",
            seen=f"{TRACKER}/192",
        ),
        Case(
            "an empty file of weights",
            LINEAR_B,
            "b/model.safetensors has 0 bytes, too few for a safetensors file\n"
            "  download the file again, or check how it was written",
            status=3,
            models=lambda: os.truncate("b/model.safetensors", 0),
        ),
        Case(
            "a pointer of Git LFS instead of weights",
            LINEAR_B,
            "b/model.safetensors is a pointer of Git LFS, not the file itself\n"
            "  run 'git lfs pull' in its folder",
            status=3,
            models=lambda: lfs_pointer("b/model.safetensors"),
            symptom="Error while deserializing header: HeaderTooLarge",
            seen="https://github.com/microsoft/OmniParser/issues/34",
        ),
        Case(
            "a pointer of Git LFS instead of a file of torch.save",
            LINEAR_B,
            "b/pytorch_model.bin is a pointer of Git LFS, not the file itself\n"
            "  run 'git lfs pull' in its folder",
            status=3,
            models=lambda: (Path("b/model.safetensors").unlink(), lfs_pointer("b/pytorch_model.bin")),
        ),
        Case(
            "a page of HTML instead of weights",
            LINEAR_B,
            "b/model.safetensors is a web page, not a file of a model\n"
            "  the download failed or asked for a login; download the file again",
            status=3,
            models=lambda: Path("b/model.safetensors").write_text(
                "<!doctype html><html><head><title>Sign in</title></head></html>"
            ),
        ),
        Case(
            "no config.json",
            LINEAR_B,
            "model 'a' has no config.json, so the output has none either; copy it there",
            status=0,
            kind="warning",
            models=lambda: Path("a/config.json").unlink(),
        ),
        Case(
            "a config.json that is not JSON",
            LINEAR_B,
            "b/config.json is not valid JSON (line 1, column 2)\n  repair the file or download it again",
            status=3,
            models=lambda: Path("b/config.json").write_text("{'model_type': 'llama'}"),
        ),
        Case(
            "a config.json of another depth than the weights",
            LINEAR_B,
            "config.json of 'a' speaks of 32 layers, its weights have 4 blocks model.layers.*; one of "
            "them is of another model",
            status=0,
            kind="warning",
            models=lambda: [config(m, num_hidden_layers=32) for m in "ab"],
        ),
        Case(
            "a model quantised with GPTQ or AWQ",
            LINEAR_B,
            "not supported: model 'b' is quantised with AWQ\n  merge the original, unquantised weights",
            status=3,
            models=lambda: (
                weights(
                    "b",
                    lambda w: w.update(
                        {n.replace("weight", "qweight"): t.int() for n, t in list(w.items()) if "proj" in n}
                    ),
                ),
                config("b", quantization_config={"quant_method": "awq", "bits": 4}),
            ),
            seen="https://github.com/hiyouga/LlamaFactory/issues/5625",
        ),
        Case(
            "one part of a split GGUF model is missing",
            LINEAR_B.replace("model: b", "model: split"),
            "split/m-00001-of-00003.gguf is one of 3 parts of a model, of which 1 is not in split: "
            "m-00002-of-00003.gguf\n"
            "  download the missing parts into the same folder",
            status=3,
            models=lambda: Path("split", split_gguf("split")[1]).unlink(),
        ),
        Case(
            "a folder with several GGUF files",
            LINEAR_B,
            "model 'b': b has 2 GGUF files: m.Q4_K_M.gguf, m.Q8_0.gguf\n"
            "  each of them is a model; name one, such as b/m.Q4_K_M.gguf",
            status=3,
            models=lambda: (
                Path("b/model.safetensors").unlink(),
                *(Path(f"b/m.{q}.gguf").touch() for q in ("Q4_K_M", "Q8_0")),
            ),
        ),
        Case(
            "a sentence-transformers model without one of its parts",
            LINEAR_B,
            "model 'b': modules.json names the part '1_Dense', whose weights are not in b\n"
            "  download the folder '1_Dense' of the model as well",
            status=3,
            models=lambda: Path("b/modules.json").write_text(
                json.dumps(
                    [
                        {
                            "idx": 0,
                            "name": "0",
                            "path": "",
                            "type": "sentence_transformers.models.Transformer",
                        },
                        {
                            "idx": 1,
                            "name": "1",
                            "path": "1_Dense",
                            "type": "sentence_transformers.models.Dense",
                        },
                    ]
                )
            ),
        ),
    ),
    "Adapters": (
        Case(
            "an adapter as a model, and its base is not there",
            LINEAR_B.replace("model: b", "model: lora"),
            "model 'lora': lora is a LoRA adapter whose base model 'org/base' was not found: model "
            "'org/base' is neither a local path nor to be had from the Hugging Face Hub: HF_HUB_OFFLINE "
            "is set, and it is not in PATH/hub\n"
            "  write it as BASE_MODEL+lora",
            status=3,
            models=lora,
        ),
        Case(
            "an adapter of another model",
            LINEAR_B.replace("model: b", "model: b+lora"),
            "model 'b+lora': adapter lora was trained on 'mistralai/Mistral-7B-v0.1', says its "
            "adapter_config.json; it is laid over b, which may be another model",
            status=0,
            kind="warning",
            models=lambda: lora(base="mistralai/Mistral-7B-v0.1"),
        ),
        Case(
            "an adapter of a larger model",
            LINEAR_B.replace("model: b", "model: b+lora"),
            "adapter lora does not fit 'model.layers.0.self_attn.q_proj.weight': lora_A [2, 32] and "
            "lora_B [64, 2] against [32, 32]\n"
            "  check that the adapter was trained on this base model",
            status=3,
            models=lambda: lora(rows=64),
        ),
        Case(
            "an adapter for modules that the model lacks",
            LINEAR_B.replace("model: b", "model: b+lora"),
            "adapter lora changes 'model.layers.0.self_attn.qkv_proj.weight' [32, 32], which its base "
            "model does not have\n"
            "  check that the adapter was trained on this base model; it has "
            "'model.layers.0.self_attn.v_proj.weight' [16, 32]",
            status=3,
            models=lambda: lora(module="qkv_proj"),
        ),
        Case(
            "a whole model after the plus sign",
            LINEAR_B.replace("model: b", "model: b+c"),
            "adapter c has no adapter_config.json\n"
            "  what stands after a '+' must be a LoRA adapter in PEFT's format",
            status=3,
        ),
        Case(
            "an adapter whose weights are missing",
            LINEAR_B.replace("model: b", "model: b+lora"),
            "cannot read lora/adapter_model.safetensors: No such file or directory\n"
            "  check the path, or download the file again",
            status=3,
            models=lambda: (lora(), Path("lora/adapter_model.safetensors").unlink()),
        ),
        Case(
            "another kind of adapter than LoRA",
            LINEAR_B.replace("model: b", "model: b+lora"),
            "not supported yet: adapter lora is of type 'IA3'; only 'LORA' is\n"
            "  merge it into its base model with PEFT, and name the result instead",
            status=3,
            models=lambda: (lora(), Path("lora/adapter_config.json").write_text('{"peft_type": "IA3"}')),
        ),
    ),
    "Values and the output": (
        Case(
            "NaN in a model",
            LINEAR_B,
            "tensor 'model.layers.2.mlp.up_proj.weight' of 'b' has the value nan at element 100, and 2 "
            "more that are no finite numbers\n"
            "  repair the model, or let it through with --allow-nonfinite",
            status=4,
            models=lambda: weights(
                "b", lambda w: w["model.layers.2.mlp.up_proj.weight"][3, 4:7].fill_(torch.nan)
            ),
            command="merge",
        ),
        Case(
            "Inf in the base",
            TIES,
            "tensor 'lm_head.weight' of 'base' has the value inf at element 0\n"
            "  repair the model, or let it through with --allow-nonfinite",
            status=4,
            models=lambda: weights("base", lambda w: w["lm_head.weight"][0, 0].fill_(torch.inf)),
            command="merge",
        ),
        Case(
            "NaN in a model that passes through",
            stack("b 0 4"),
            "tensor 'lm_head.weight' of 'b' has the value nan at element 0\n"
            "  repair the model, or let it through with --allow-nonfinite",
            status=4,
            models=lambda: weights("b", lambda w: w["lm_head.weight"][0, 0].fill_(torch.nan)),
            command="merge",
        ),
        Case(
            "values that float16 cannot hold",
            LINEAR_B + "dtype: float16\n",
            "tensor 'model.norm.weight' of the output has values from 1 to 70000 near element 0, which "
            "float16 cannot hold (it ends at 65504)\n"
            "  choose a wider dtype such as bfloat16 or float32",
            status=4,
            models=lambda: [weights(m, lambda w: w["model.norm.weight"][5:7].fill_(70000.0)) for m in "ab"],
            command="merge",
            symptom="probability tensor contains either inf, nan or element < 0",
        ),
        Case(
            "task vectors that add up to more than float16 can hold",
            arithmetic(a="weight: 1", b="weight: 1") + "dtype: float16\n",
            "tensor 'model.norm.weight' of the output has values from 1 to 79999 near element 0, which "
            "float16 cannot hold (it ends at 65504)\n"
            "  choose a wider dtype such as bfloat16 or float32",
            status=4,
            models=lambda: [weights(m, lambda w: w["model.norm.weight"][5].fill_(40000.0)) for m in "ab"],
            command="merge",
        ),
        Case(
            "an output folder that is not empty",
            LINEAR_B,
            "out is not empty: it has config.json, generation_config.json, model.safetensors\n"
            "  name a new folder, or add --overwrite to replace what is there",
            models=lambda: shutil.copytree("c", "out"),
            command="merge",
        ),
        Case(
            "an output folder inside an input",
            LINEAR_B.replace("model: b", "model: out/b"),
            "out contains the folder of the input 'out/b'\n"
            "  inputs are never changed; name a folder apart from them",
            models=lambda: shutil.move("b", Path("out").mkdir() or "out/b"),
            command="merge",
            options=("--overwrite",),
        ),
        Case(
            "the output is an input",
            LINEAR_B.replace("model: b", "model: out"),
            "out is the folder of the input 'out'\n  inputs are never changed; name a folder apart from them",
            models=lambda: shutil.move("b", "out"),
            command="merge",
            options=("--overwrite",),
        ),
        Case(
            "the output is a file",
            LINEAR_B,
            "out is a file\n  name a folder",
            models=lambda: Path("out").touch(),
            command="merge",
        ),
        Case(
            "a disk that is too small",
            "merge_method: passthrough\nmodels: [{model: big}]\n",
            "the output needs 8,796,093 MB, the disk of out has … MB free\n"
            "  free some space, or name a folder on another disk",
            status=4,
            models=huge,
            command="merge",
            symptom="No space left on device, after hours",
        ),
    ),
}
