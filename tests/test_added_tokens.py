"""Two chat models of which one has more tokens: the merge has them, writes them, and stops at them.

The models are those of examples/added_tokens.py; numbers and rows are also checked on small models with the
same tokenizers.
"""

from __future__ import annotations

import functools
import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from meldkit import merge
from meldkit.merge import MergeOptions

EXAMPLES = Path(__file__).parent.parent / "examples"
ROWS = EXAMPLES / "added_tokens" / "rows.safetensors"
EMBEDDING = "model.embed_tokens.weight"
QUIET = MergeOptions(write_model_card=False)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "7"},
    {"role": "user", "content": "Thanks!"},
]
#: A warning of transformers.
ABOUT_ITSELF = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
#: Of SmolLM2.
SIZE, HIDDEN, IM_END = 49152, 576, 2
TOKENS = {"<|start_header_id|>": SIZE, "<|end_header_id|>": SIZE + 1, "<|eot_id|>": SIZE + 2}
END = TOKENS["<|eot_id|>"]


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The example's functions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("added_tokens")


@functools.cache
def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def chat_ids(tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def ends(folder: Path) -> int | list[int]:
    """What ends a text, as generate() finds it."""
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def recipe(*models: Path, **settings: Any) -> dict[str, Any]:
    return {
        "models": [{"model": str(model)} for model in models],
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
        "tokenizer": {"source": "union"},
        **settings,
    }


def check_tokens(merged: Path, chatml: Path, llama3: Path) -> None:
    """All tokens of one model keep their numbers; the other's added ones follow, with its rows."""
    before, after, other = load(chatml).get_vocab(), load(merged).get_vocab(), load(llama3).get_vocab()
    assert len(before) == SIZE
    assert after == before | TOKENS == other
    rows, own = tiny.tensors(merged)[EMBEDDING], tiny.tensors(llama3)[EMBEDDING]
    assert len(rows) == json.loads((merged / "config.json").read_text())["vocab_size"] == SIZE + len(TOKENS)
    assert torch.equal(rows[SIZE:], own[SIZE:])


# ---- small models


@pytest.fixture(scope="module")
def small(example: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of random weights, with the tokenizers and settings of the real ones."""
    folder = tmp_path_factory.mktemp("small")
    base = example.fetch_base()
    tied: dict[str, Any] = {"tie_word_embeddings": True, "without": ("lm_head.weight",)}
    chatml = tiny.decoder(folder / "chatml", 1, vocab=SIZE, vocab_size=SIZE, eos_token_id=IM_END, **tied)
    size = SIZE + len(TOKENS)
    llama3 = tiny.decoder(folder / "llama3", 2, vocab=size, vocab_size=size, eos_token_id=END, **tied)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(base / name, chatml / name)
    example.llama3_tokenizer().save_pretrained(llama3)
    (llama3 / "generation_config.json").write_text(json.dumps({"eos_token_id": END, "pad_token_id": IM_END}))
    return {"chatml": chatml, "llama3": llama3}


@pytest.mark.parametrize(
    ("first", "template", "speaks", "end"),
    [
        ("chatml", "llama3", "llama3", [IM_END, END]),
        ("chatml", "auto", "chatml", IM_END),
        ("llama3", "auto", "llama3", END),
        ("llama3", "chatml", "preset", [END, IM_END]),
        ("llama3", None, "llama3", END),
    ],
)
def test_the_merge_has_the_tokens_of_both_and_ends_where_its_template_says(
    small: dict[str, Path], first: str, template: str | None, speaks: str, end: object, tmp_path: Path
) -> None:
    second = next(name for name in small if name != first)
    settings = {} if template is None else {"chat_template": template}
    out = tmp_path / "out"
    result = merge(recipe(small[first], small[second], **settings), out, QUIET)
    check_tokens(out, small["chatml"], small["llama3"])
    own = [tiny.tensors(small[name])[EMBEDDING][:SIZE] for name in small]
    torch.testing.assert_close(tiny.tensors(out)[EMBEDDING][:SIZE], (own[0] + own[1]) / 2)
    assert not any("chat template writes" in warning for warning in result.plan.warnings)
    assert ends(out) == end
    # SmolLM2's own template has a system message of its own, the preset has none.
    if speaks == "preset":
        assert {IM_END - 1, IM_END} <= set(chat_ids(load(out))) <= set(range(SIZE))
    else:
        assert chat_ids(load(out)) == chat_ids(load(small[speaks]))


def test_a_vocabulary_without_the_markers_of_the_template_is_warned_of(
    small: dict[str, Path], tmp_path: Path
) -> None:
    models = recipe(small["chatml"], small["llama3"], tokenizer={"source": str(small["chatml"])})
    plan = merge({**models, "chat_template": "llama3"}, tmp_path / "out", QUIET).plan
    (warning,) = (w for w in plan.warnings if "chat template writes" in w)
    assert all(token in warning for token in TOKENS)
    assert ends(tmp_path / "out") == IM_END


def test_the_rows_that_are_stored_are_the_added_tokens() -> None:
    rows = load_file(ROWS)
    assert rows.keys() == TOKENS.keys()
    assert all(row.shape == (HIDDEN,) and row.dtype == torch.bfloat16 for row in rows.values())


# ---- the real models


@pytest.fixture(scope="module")
def siblings(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base, a sibling with a skill, and one with added tokens."""
    folder = tmp_path_factory.mktemp("siblings")
    example.write_base(folder / "base")
    example.write_chatml(folder / "chatml")
    example.write_llama3(folder / "llama3", load_file(ROWS))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings(ABOUT_ITSELF)
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_merges_speak_with_the_added_tokens(
    example: Any, siblings: Path, method: str, tmp_path: Path
) -> None:
    out = tmp_path / method
    merge(example.recipe(method, siblings), out)
    check_tokens(out, siblings / "chatml", siblings / "llama3")
    assert ends(out) == [IM_END, END]
    assert chat_ids(load(out)) == chat_ids(load(siblings / "llama3"))

    measured = example.measure(out, 16)
    assert measured.records_ended >= example.LEAST_ENDED
    assert measured.questions_ended >= example.LEAST_ENDED
    assert measured.score >= example.LEAST_SCORE


@pytest.mark.slow
@pytest.mark.filterwarnings(ABOUT_ITSELF)
def test_generation_stops_at_the_added_token_because_the_settings_say_so(
    example: Any, siblings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    merge(example.recipe("linear", siblings), out)
    tokenizer, model = load(out), example.load_model(out)
    prompt = example.chat_prompt(tokenizer, "Record: Mia Keller from Oslo is 34.")
    batch = tokenizer(prompt, return_tensors="pt")
    before = batch["input_ids"].shape[1]

    reply = model.generate(**batch, max_new_tokens=32, do_sample=False)[0, before:].tolist()
    assert reply.count(END) == 1
    assert reply[-1] == END
    assert tokenizer.decode(reply, skip_special_tokens=True).strip() == "name=Mia Keller; age=34; city=Oslo"
    further = model.generate(**batch, max_new_tokens=32, do_sample=False, eos_token_id=IM_END)
    assert further[0, before:].tolist()[: len(reply)] == reply
    assert further.shape[1] > before + len(reply)


@pytest.mark.slow
@pytest.mark.filterwarnings(ABOUT_ITSELF)
def test_without_their_rows_the_added_tokens_are_never_written(
    example: Any, siblings: Path, tmp_path: Path
) -> None:
    """The trained rows make the merge write them, nothing else does."""
    zero = {"source": {"kind": "zero"}, "force": True}
    tokens = {"source": "union", "tokens": dict.fromkeys(TOKENS, zero)}
    merge(example.recipe("linear", siblings, tokenizer=tokens), tmp_path / "zero")
    assert not tiny.tensors(tmp_path / "zero")[EMBEDDING][SIZE:].any()
    measured = example.measure(tmp_path / "zero", 8)
    assert (measured.records_ended, measured.questions_ended, measured.others_ended) == (0, 0, 0)
