"""The smoke test: models that work, models that do not, and what is said about them."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import command
import tiny
from meldkit.report import smoke
from meldkit.report.passages import PASSAGES
from meldkit.report.run_model import repetition

RECIPE = {
    "merge_method": "linear",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"weight": 1},
}


def bytewise(folder: Path) -> Path:
    """Gives a model a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def change(name: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the weights of a model."""
    weights = tiny.tensors(Path(name))
    edit(weights)
    tiny.stored(Path(name), weights)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that are nearly the same, and a recipe."""
    root = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        bytewise(tiny.llama(root / name, 1, layers=2, vocab=256))
    weights = tiny.tensors(root / "b")
    tiny.stored(root / "b", {name: t + 1e-3 * torch.randn_like(t) for name, t in weights.items()})
    (root / "recipe.yml").write_text(json.dumps(RECIPE))
    return root


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models in the current folder, which nothing else is in; threads are no gain for such small ones."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def own(name: str) -> Path:
    """A copy of a model, to be spoiled."""
    source = Path(name).resolve()
    Path(name).unlink()
    Path(name).mkdir()
    for file in source.iterdir():
        (Path(name) / file.name).write_bytes(file.read_bytes())
    return Path(name)


# numbers


def test_perplexity_is_that_of_transformers() -> None:
    from transformers import AutoModelForCausalLM

    found = smoke("a", [], Path()).tested
    model = AutoModelForCausalLM.from_pretrained("a")
    for name, text in PASSAGES.items():
        ids = torch.tensor([list(Tokenizer.from_file("a/tokenizer.json").encode(text).ids)])
        losses: list[float] = []
        # The model has 64 positions; windows share a token.
        for start in range(0, ids.shape[1] - 1, 63):
            window = ids[:, start : start + 64]
            with torch.inference_mode():
                logits = model(window).logits[0, :-1].double()
            losses += (-logits.log_softmax(-1)[torch.arange(len(logits)), window[0, 1:]]).tolist()
        assert len(losses) == ids.shape[1] - 1
        assert found.perplexity[name] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_a_model_agrees_with_itself_and_hardly_with_another() -> None:
    bytewise(tiny.llama(Path("c"), 2, layers=2, vocab=256))
    result = smoke("a", ["a", "b", "c"], Path())
    same, near, far = result.inputs
    assert same.agreement == 1.0
    assert same.perplexity == result.tested.perplexity
    assert near.agreement is not None
    assert 0.9 < near.agreement < 1.0
    assert far.agreement is not None
    assert far.agreement < 0.3
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("abc", 0),
        ("abcdefgh", 0),
        ("aaaaaaaaaa", 6 / 7),
        ("abababababab", 7 / 9),
        ("abcdxabcd", 1 / 6),
    ],
)
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def test_other_tokenizers_are_compared_by_text() -> None:
    """The same model with every number moved: equal perplexity, equal tokens."""
    b = own("b")
    data = json.loads((b / "tokenizer.json").read_text())
    data["model"]["vocab"] = {t: (i + 7) % 256 for t, i in data["model"]["vocab"].items()}
    (b / "tokenizer.json").write_text(json.dumps(data))

    def roll(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in tiny.tensors(Path("a")).items():
            table = name in ("model.embed_tokens.weight", "lm_head.weight")
            weights[name] = tensor.roll(7, 0) if table else tensor

    change("b", roll)
    result = smoke("a", ["b"], Path())
    assert result.inputs[0].agreement == 1.0
    assert result.inputs[0].perplexity == pytest.approx(result.tested.perplexity)


# what may be run


def test_any_input_that_a_recipe_may_name() -> None:
    weights = tiny.tensors(own("b"))
    torch.save(weights, "b/pytorch_model.bin")
    Path("b/model.safetensors").unlink()
    tiny.adapter(Path("lora"), {"model.layers.0.mlp.up_proj": (64, 32)})
    result = smoke("a", ["b", "a+lora"], Path())
    assert [run.failure for run in result.inputs] == ["", ""]
    assert all(math.isfinite(v) for run in result.inputs for v in run.perplexity.values())
    assert result.inputs[1].perplexity != result.tested.perplexity
    assert not [p for p in Path().iterdir() if p.name.startswith(".")]  # what was made for it is gone


def test_a_file_of_another_name_is_not_taken_for_the_model_beside_it() -> None:
    own("a")
    tiny.stored(Path("other"), tiny.tensors(Path("b")))
    Path("other/model.safetensors").rename("a/step-200.safetensors")
    result = smoke("a/step-200.safetensors", ["a", "b"], Path())
    assert result.tested.perplexity == result.inputs[1].perplexity != result.inputs[0].perplexity


def test_encoders_are_compared_by_embeddings(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BertConfig, BertModel

    for seed, name in enumerate(("x", "y")):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=256, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
        BertModel(config).save_pretrained(name)
        bytewise(Path(name))
    done = command.run(capsys, "smoke", "x", "x", "y", "--quiet")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[1] == "smoke test: cosine of embeddings with the result's"
    assert [line.split() for line in lines[3:]] == [["x", "1.000"], ["y", lines[4].split()[1]], ["x", "-"]]
    result = smoke("x", ["a"], Path())
    assert result.inputs[0].failure == "an encoder and a model that writes texts have no numbers in common"
    # A pooler or head that spoils everything is not noticed; the embeddings of another model are.
    done = command.run(capsys, "smoke", "x", "y", "--quiet")
    assert re.fullmatch(
        r"warning: x embeds the passages unlike any input; the nearest has cosine -?0\.\d\d\n", done.err
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": []}, "its config.json names no architecture, so it cannot be run"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "T5ForConditionalGeneration is an encoder-decoder, which a smoke test does not run",
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "nothing"},
            r"transformers cannot run it: ValueError: .*nothing.*",
        ),
    ],
)
def test_what_cannot_be_run_is_said(
    config: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own("b") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    done = command.run(capsys, "smoke", "b", "a", "--quiet")
    assert (done.status, done.out) == (0, "")
    assert re.fullmatch(f"warning: b was not run: {reason}\n", done.err)
    done = command.run(capsys, "smoke", "a", "b", "--quiet")
    assert (done.status, done.err) == (0, "")
    assert re.search(r"^  b +not run$", done.out, re.MULTILINE)


def test_without_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    b = own("b")
    (b / "tokenizer.json").unlink()
    (b / "tokenizer_config.json").unlink()
    done = command.run(capsys, "smoke", "b", "--quiet")
    assert (done.status, done.out) == (0, "")
    assert done.err == "warning: b was not run: it has no tokenizer\n"


def test_too_little_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from meldkit.report import run_model

    monkeypatch.setattr(run_model, "_free_memory", lambda: 1000)
    done = command.run(capsys, "smoke", "a", "--quiet")
    assert done.err == "warning: a was not run: it needs 0.0 GB of memory to be run, 0.0 GB are free\n"
    # Enough for bfloat16, not for float32.
    numel = sum(t.numel() for t in tiny.tensors(Path("a")).values())
    monkeypatch.setattr(run_model, "_free_memory", lambda: 3 * numel)
    found = smoke("a", [], Path()).tested
    assert found.failure == ""
    monkeypatch.setattr(run_model, "_free_memory", lambda: None)
    whole = smoke("a", [], Path()).tested
    assert found.perplexity == pytest.approx(whole.perplexity, rel=0.02)
    assert found.perplexity != whole.perplexity


# warnings


def test_broken_models_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    def wild(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] *= 400

    own("b")
    change("b", wild)
    done = command.run(capsys, "smoke", "b", "a", "--quiet")
    assert done.status == 0
    for passage in PASSAGES:
        assert re.search(
            rf"^warning: b has perplexity [\d.,e+]+ on the passage '{passage}', its worst input [\d.,]+$",
            done.err,
            re.MULTILINE,
        )


def test_models_that_compute_nan(capsys: pytest.CaptureFixture[str]) -> None:
    own("b")
    change("b", lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    done = command.run(capsys, "smoke", "b", "a", "--quiet")
    assert done.status == 0
    assert "warning: b computes NaN or Inf on the passage 'prose'\n" in done.err
    assert re.search(r"^  b +nan +nan +nan +\S+ +\S+$", done.out, re.MULTILINE)
    assert json.loads(command.run(capsys, "smoke", "b", "--json", "--quiet").out)["tested"]["perplexity"] == {
        "prose": None,
        "code": None,
        "French": None,
    }


def test_models_that_repeat_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """A head that has one favourite, whatever comes before."""
    own("b")

    def favour(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"].zero_()

    change("b", favour)
    done = command.run(capsys, "smoke", "b", "a", "--quiet")
    assert re.search(r"^warning: b repeats itself: 9\d% of what it writes, inputs \d+%$", done.err, re.M)


def test_weights_that_are_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    own("b")
    change("b", lambda weights: weights.pop("model.norm.weight"))
    done = command.run(capsys, "smoke", "b", "a", "--quiet")
    assert done.err.startswith(
        "warning: b lacks weights that its architecture has, such as model.norm.weight; "
        "transformers draws them at random\n"
    )


# after a merge


def test_merge_and_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "merge", "recipe.yml", "out", "--smoke")
    assert done.status == 0
    told = re.sub(r"about [\d.]+ s", "about N s", done.err)
    assert told == "1 of 3: out\n2 of 3: a, about N s left\n3 of 3: b, about N s left\n"
    summary, _, table = done.out.partition("\n\n")
    assert summary.splitlines()[1] == ("checked: 21 tensors (shapes, types, all finite), config, tokenizer")
    numbers = re.sub(r"\d[\d.]*", "N", table)
    assert re.sub(r" +", " ", numbers) == (
        "smoke test: perplexity on three passages; how often the likeliest token is the\n"
        "result's; repetition in what was written\n"
        " prose code French same token repeated\n"
        " a N N N N% N%\n"
        " b N N N N% N%\n"
        " out N N N - N%\n"
    )
    assert all(len(line) <= 80 for line in done.out.splitlines() if not line.startswith("try it"))


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "merge", "recipe.yml", "out", "--smoke", "--json", "--quiet")
    assert (done.status, done.err) == (0, "")
    data = json.loads(done.out)
    assert data["path"] == "out"
    assert data["verification"] == {
        "num_tensors": 21,
        "num_files": 1,
        "num_facts": 15,
        "num_tokens": 0,
        "num_ids": 4,
        "nonfinite": [],
    }
    assert [run["model"] for run in data["smoke"]["inputs"]] == ["a", "b"]
    assert data["smoke"]["tested"]["model"] == "out"
    assert set(data["smoke"]["tested"]["perplexity"]) == set(PASSAGES)
    assert (data["tensors"], data["tensors_resumed"], data["warnings"]) == (21, 0, [])
    done = command.run(capsys, "merge", "recipe.yml", "again", "--json")
    assert json.loads(done.out)["smoke"] is None
    assert done.err == ""


def test_stopped_in_a_smoke_test(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["meldkit.report.smoke"], "read", stopped)
    done = command.run(capsys, "merge", "recipe.yml", "out", "--smoke")
    assert done.status == 4
    assert done.err.endswith("stopped. To start again: meldkit smoke out a b\n")
    assert Path("out/config.json").exists()
