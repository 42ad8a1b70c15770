"""What the tools make is written like a merge: stopped anywhere, it goes on, and ends in the same bytes.

It can be run again from its record, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import word_tokenizers as words
from meldkit import merge, plan
from meldkit.errors import MeldError, RunError
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL, RECIPE, RECORD
from meldkit.plan import Plan
from meldkit.tools.lora.extract import plan_extraction
from meldkit.tools.lora.wanted import Extraction
from meldkit.tools.moe.config import load_mixture
from meldkit.tools.moe.make import plan_mixture
from meldkit.tools.reproduce import reproduce
from meldkit.tools.transplant.plan import plan_transplant
from meldkit.tools.transplant.wanted import Transplant
from test_resume import failing, weights

ONE = MergeOptions(num_threads=1, random_seed=3, write_model_card=False)
WEIGHTED = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("a", 0.3), ("b", 0.7))]


def mixture() -> Plan:
    Path("moe.yml").write_text(
        "base_model: base\ngate_mode: random\nexperts: [{source_model: a}, {source_model: b}]\n"
    )
    return plan_mixture(*load_mixture(Path("moe.yml")), ONE).plan


def stages() -> Plan:
    inner = {"merge_method": "ties", "base_model": "base", "models": WEIGHTED, "parameters": {"density": 0.5}}
    models = [{"model": inner}, {"model": "b"}]
    return plan({"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}, ONE)


def adapter_over_a_stage() -> Plan:
    Path("recipe.yml").write_text(
        "name: inner\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n"
        "---\n"
        "merge_method: linear\nmodels: [{model: inner+x}, {model: b}]\nparameters: {weight: 0.5}\n"
    )
    return plan("recipe.yml", ONE)


def adapters() -> Plan:
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("x", "y")]
    return plan({"merge_method": "svd", "parameters": {"rank": 3}, "models": models}, ONE)


MADE: dict[str, Callable[[], Plan]] = {
    "moe": mixture,
    "extract-lora": lambda: plan_extraction(Extraction.of("a", "base", max_rank=4), ONE).plan,
    "tokensurgeon": lambda: plan_transplant(Transplant.of("base", "donor", k=3), ONE).plan,
    "stages": stages,
    "adapter over a stage": adapter_over_a_stage,
    "adapters": adapters,
}


#: What some of them are made of.
INPUTS = ("base", "a", "b", "x", "y", "donor")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.llama(Path(name), seed, hidden=32, layers=3)
    modules = {f"model.layers.{i}.self_attn.{m}_proj": (32, 32) for i in range(3) for m in "qo"}
    for name in ("x", "y"):
        tiny.adapter(Path(name), modules, rank=4)
    for name, start in (("base", 0), ("donor", 20)):
        content = words.content({"<unk>": 0, **{f"w{i + start}": i for i in range(1, 64)}})
        if name == "donor":
            tiny.decoder(Path(name), 4, hidden=5, vocab=64, vocab_size=64)
        Path(name, "tokenizer.json").write_text(json.dumps(content))
        Path(name, "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.mark.parametrize("tool", MADE)
def test_goes_on_where_it_stopped(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MADE[tool]()
    whole = merge(made, "whole", ONE)
    assert whole.num_resumed == 0
    for after in (3, 5):
        with failing(monkeypatch, os, "pwrite", after), pytest.raises(RunError, match="No space left"):
            merge(MADE[tool](), "out", ONE)
        assert sorted(path.name for path in Path("out").iterdir()) == [PARTIAL]
    result = merge(MADE[tool](), "out", ONE)
    assert (result.num_resumed > 0, result.discarded) == (True, False)
    assert weights("out") == weights("whole")


@pytest.mark.parametrize("tool", MADE)
def test_any_number_of_threads_gives_the_same(tool: str) -> None:
    merge(MADE[tool](), "one", ONE)
    many: dict[str, Any] = {"num_threads": 5, "random_seed": 3, "write_model_card": False}
    merge(MADE[tool](), "five", MergeOptions(**many))
    one, five = tiny_tensors("one"), tiny_tensors("five")
    assert one.keys() == five.keys()
    for name in one:
        assert torch.equal(one[name], five[name]), name


@pytest.mark.parametrize("tool", MADE)
def test_is_run_again_from_its_record(tool: str) -> None:
    """Where the models are somewhere else, too; and not where they are others."""
    merge(MADE[tool](), "out", ONE)
    assert reproduce("out").same
    for name in INPUTS:
        Path("elsewhere").mkdir(exist_ok=True)
        Path(name).rename(Path("elsewhere", name))
    found = reproduce("out", models=[Path("elsewhere")])
    assert (found.inputs, found.differences, found.same) == ((), (), True)
    assert found.num_tensors == len(tiny_tensors("out"))
    for path in Path("elsewhere").glob("*/*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    other = reproduce("out", models=[Path("elsewhere")])
    assert (other.num_tensors, other.same) == (0, False)
    assert all("other bytes in" in line for line in other.inputs)


@pytest.mark.parametrize("tool", MADE)
@pytest.mark.parametrize(
    "text", ["", "[]", "model: 3", "{model: a, base: [], k: x, experts: {}}", "a: 1", "\0"]
)
def test_text_of_a_stranger(tool: str, text: str) -> None:
    """What a record says was wanted may be anything."""
    merge(MADE[tool](), "out", ONE)
    Path("out", RECIPE).write_text(text)
    record = json.loads(Path("out", RECORD).read_text())
    record["files"][RECIPE]["sha256"] = sha256(text.encode()).hexdigest()
    Path("out", RECORD).write_text(json.dumps(record))
    with pytest.raises(MeldError):
        reproduce("out")


def tiny_tensors(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
