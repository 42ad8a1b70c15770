"""`meldkit new`: recipes of every method parse, plan without a warning, and merge."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer, models, pre_tokenizers

import command
import tiny
from meldkit.api import merge, plan, read_recipe
from meldkit.methods import METHODS, Base, Method
from meldkit.report.schema import recipe_schema

VALIDATOR = Draft202012Validator(recipe_schema(METHODS.values()))
#: Ours: other tests declare methods of their own.
OURS = [m for m in METHODS.values() if m.function.__module__.startswith("meldkit.")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models base, a, b and c in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b", "c")):
        tiny.decoder(Path(name), seed, layers=4, dtype=torch.bfloat16)
    return tmp_path


def arguments(method: Method, most: bool) -> list[str]:
    """A base where one is needed, and as few or as many models as the method takes."""
    low, high = method.num_models
    count = min(3, high or 3) if most else low
    return ["base", "a", "b", "c"][: count + (method.base is Base.DELTA)]


def written(capsys: pytest.CaptureFixture[str], *args: str, err: str = "") -> str:
    done = command.run(capsys, "new", *args)
    assert (done.status, done.err) == (0, err)
    return done.out


def uncommented(text: str) -> str:
    """With every parameter that stands there as a comment."""
    return re.sub(r"^( +)# (\w+: [^\s]+)$", r"\1\2", text, flags=re.MULTILINE)


@pytest.mark.parametrize("slices", [False, True], ids=["models", "slices"])
@pytest.mark.parametrize("most", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("method", OURS, ids=lambda m: m.name)
def test_every_recipe_plans_without_a_warning_and_merges(
    capsys: pytest.CaptureFixture[str], method: Method, most: bool, slices: bool
) -> None:
    text = written(capsys, method.name, *arguments(method, most), *["--slices"] * slices)
    assert max(map(len, text.splitlines())) <= 80
    full = uncommented(text)
    for number, version in enumerate((text, full)):
        path = Path(f"{number}.yml")
        path.write_text(version)
        data = yaml.safe_load(version)
        assert [e.message for e in VALIDATOR.iter_errors(data)] == []
        assert next(iter(data)) == ("slices" if slices else "models")
        decided = plan(path)
        assert decided.warnings == ()
        assert {job.dtype for job in decided.jobs} == {"BF16"}
    merge("0.yml", "out")
    own = {p.name for p in method.parameters if not p.of_recipe}
    assert {p for p in own if f" {p}:" in full} == own
    for p in method.parameters:
        if not p.of_recipe:
            assert p.doc.split()[0] in text


def test_commented_parameters_stand_at_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for method in OURS:
        text = written(capsys, method.name, *arguments(method, True))
        Path("1.yml").write_text(text)
        Path("2.yml").write_text(uncommented(text))
        one, other = plan("1.yml"), plan("2.yml")
        if method.name == "passthrough":
            continue
        assert [job.values for job in one.jobs] == [job.values for job in other.jobs]


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, "slerp", "a", "b") == (
        "# slerp: Interpolation along the arc between two models; the base model is the\n"
        "# start (t = 0).\n"
        "# More: meldkit methods slerp\n"
        "#\n"
        "# See what it does:  meldkit plan recipe.yml\n"
        "# Merge:             meldkit merge recipe.yml OUT\n"
        "\n"
        "models:\n"
        "  - model: a\n"
        "  - model: b\n"
        "\n"
        "merge_method: slerp\n"
        "\n"
        "# Required, the start of the path.\n"
        "base_model: a\n"
        "\n"
        "parameters:\n"
        "  # Position on the arc: 0 is the base model, 1 the other one. Any number;\n"
        "  # required.\n"
        "  # 0.5: half way.\n"
        "  t: 0.5\n"
        "\n"
        "# Type of the output: that of the models.\n"
        "dtype: bfloat16\n"
    )


def test_models_that_are_not_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = command.run(capsys, "new", "ties", "org/base", "org/a", "org/b", "--slices", "--out", "new.yml")
    assert (done.status, done.out) == (0, "")
    said = done.err.splitlines()
    assert len(said) == 3
    assert said[0].startswith(
        "warning: 'org/base' was not looked at: model 'org/base' is neither a local path"
    )
    text = Path("new.yml").read_text()
    assert "# Warning: 'org/base' was not looked at:" in text
    assert "'org/base', 'org/a' and 'org/b' has is not known; 32 is a guess." in text.replace("\n# ", " ")
    assert "# See what it does:  meldkit plan new.yml" in text
    recipe = read_recipe("new.yml")
    assert recipe.dtype == "bfloat16"
    assert [s.layer_range for s in recipe.modules[0].slices[0].sources] == [(0, 32)] * 3


def test_models_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.decoder(Path("b"), 1, layers=3)
    done = command.run(capsys, "new", "linear", "a", "b")
    assert done.status == 0
    assert done.err == (
        "warning: it cannot be merged as it is: model 'b' has 3 blocks model.layers.*, 'a' has 4\n"
    )
    assert "# Warning: it cannot be merged as it is: model 'b' has 3 blocks" in done.out
    text = written(capsys, "passthrough", "a", "b")
    assert [s["sources"][0]["layer_range"] for s in yaml.safe_load(text)["slices"]] == [[0, 3], [0, 3]]


def test_base(capsys: pytest.CaptureFixture[str]) -> None:
    for method, expected in {
        "linear": ["a", "b"],
        "karcher": ["a", "b", "base"],
        "nuslerp": ["a", "b"],
        "ties": ["a", "b"],
        "slerp": ["base", "a"],
    }.items():
        given = expected[:2] if method != "slerp" else ["a"]
        data = yaml.safe_load(written(capsys, method, *given, "--base", "base"))
        assert [m["model"] for m in data["models"]] == expected
        assert data["base_model"] == "base"


def word_tokenizer(folder: str, words: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words.split())}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))


def test_vocabularies(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        word_tokenizer(name, "<unk> the cat sat on mat")
    assert "tokenizer" not in yaml.safe_load(written(capsys, "linear", "a", "b"))
    word_tokenizer("b", "<unk> the dog sat on mat")
    text = written(capsys, "linear", "a", "b", "--out", "new.yml")
    text = Path("new.yml").read_text()
    assert yaml.safe_load(text)["tokenizer"] == {"source": "union"}
    assert plan("new.yml").warnings == ()
    merge("new.yml", "out")
    assert tiny.tensors(Path("out"))["model.embed_tokens.weight"].shape[0] == 7


def test_names_that_yaml_would_read_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.decoder(Path("1.5"), 1, layers=4)
    tiny.decoder(Path("a: b"), 1, layers=4)
    text = written(capsys, "linear", "1.5", "a: b")
    assert [m["model"] for m in yaml.safe_load(text)["models"]] == ["1.5", "a: b"]


def test_types(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.decoder(Path("b"), 1, layers=4)
    assert "# Type of the output: that of 'a'; others have float32.\ndtype: bfloat16\n" in written(
        capsys, "linear", "a", "b"
    )


def test_schema_beside_the_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(capsys, "schema", "--out", "recipe.schema.json").out == ""
    assert json.loads(Path("recipe.schema.json").read_text())["title"] == "meldkit recipe"
    text = written(capsys, "linear", "a", "b")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n# linear: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no METHOD is given\n  meldkit new METHOD MODEL MODEL; meldkit methods lists them"),
        (["tie", "a", "b"], "unknown merge_method 'tie'\n  did you mean 'ties'?"),
        (
            ["a", "b"],
            "'a' is a model\n  the method comes first: meldkit new METHOD a b; or meldkit new --suggest",
        ),
        (
            ["ties", "a"],
            "ties takes a base and 1 or more models, got 1\n  meldkit new ties BASE MODEL MODEL …",
        ),
        (["ties"], "ties takes a base and 1 or more models, got 0\n  meldkit new ties BASE MODEL MODEL …"),
        (["slerp", "a", "b", "c"], "slerp takes 2 models, got 3\n  meldkit new slerp BASE MODEL"),
        (["nearswap", "a"], "nearswap takes a base and 1 model, got 1\n  meldkit new nearswap BASE MODEL"),
        (
            ["model_stock", "a", "b"],
            "model_stock takes a base and 2 or more models, got 2\n"
            "  meldkit new model_stock BASE MODEL MODEL MODEL …",
        ),
        (["linear", "a", "--out", "there.yml"], "there.yml exists\n  name another file, or remove it first"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    Path("there.yml").write_text("mine")
    done = command.run(capsys, "new", *args)
    assert (done.status, done.out, done.err) == (2, "", f"error: {message}\n")
    assert Path("there.yml").read_text() == "mine"
