"""Access tokens and passwords appear in nothing that is printed or written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import command
import tiny
from meldkit.api import plan
from meldkit.checkpoint.hub import download
from meldkit.errors import CheckpointError, MeldError, RecipeError
from meldkit.recipe import parse_recipe

TOKEN = "hf_SentinelSentinelSentinelSentinel"
PASSWORD = "open-sesame"
LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.mark.parametrize("own", [TOKEN, "a token of another form", f"  {TOKEN}\n"])
def test_what_others_say_is_repeated_without_secrets(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server was sent the token, and may say it again."""
    from huggingface_hub import HfApi

    monkeypatch.setenv("HF_TOKEN", own)

    def fails(*_: object, **__: object) -> None:
        raise OSError(f"401 for https://me:{PASSWORD}@hub.test/x with Bearer {own.strip()}")

    monkeypatch.setattr(HfApi, "model_info", fails)
    monkeypatch.setenv("HF_HUB_CACHE", "none")
    with pytest.raises(CheckpointError) as caught:
        download("org/name", None, Path("cache"))
    said = f"{caught.value}{caught.value.args}{caught.value.message}{caught.value.hint}"
    assert "401 for https://***@hub.test/x with Bearer ***" in said
    assert own.strip() not in said
    assert PASSWORD not in said


@pytest.mark.parametrize("login", ["me:{}", "me:{}@2", "me:{}/2", "me:a+{}", "me:@{}", "{}"])
@pytest.mark.parametrize("form", ["'{}'", "'a+{}'", "{{model: {{path: '{}'}}}}", "{{model: a, lora: '{}'}}"])
def test_address_of_a_model_is_not_shown_with_its_password(login: str, form: str) -> None:
    model = form.format(f"https://{login.format(PASSWORD)}@huggingface.co/org/a")
    text = f"merge_method: linear\nmodels:\n- model: {model}\n"
    with pytest.raises(RecipeError) as caught:
        plan(parse_recipe(text))
    assert PASSWORD not in str(caught.value)
    assert str(caught.value) == (
        "recipe.yml:3: the model is an address with a user name or password: https://…\n"
        "  name a model by its folder, or by its hub id such as org/name"
    )


def test_other_text_stays_as_it_is() -> None:
    text = "hf_model/x@main is no token, nor is https://huggingface.co/a@b; HF_TOKEN is a name"
    assert MeldError(text, hint=text).message == text
    assert MeldError("half \ud83d of one").message == "half \\ud83d of one"


def test_nothing_that_a_merge_leaves_holds_them(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        tiny.decoder(tmp_path / name, seed)
    Path("recipe.yml").write_text(LINEAR)
    Path("hub.yml").write_text(LINEAR.replace("model: b", "model: org/name"))
    environment = os.environ | {
        "HF_ENDPOINT": f"http://me:{PASSWORD}@127.0.0.1:9",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    printed = ""
    for arguments, status in (
        (("merge", "recipe.yml", "out", "--html", "merge.html", "-vv"), 0),
        (("plan", "recipe.yml", "--json"), 0),
        (("merge", "hub.yml", "other", "-vv"), 3),
        (("plan", "hub.yml", "--json"), 3),
    ):
        done = subprocess.run(
            [command.SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status, done.stderr
        printed += done.stdout + done.stderr
    written = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert {Path("merge.html"), Path("out/README.md"), Path("out/meldkit.json")} <= written.keys()
    for secret in (TOKEN, PASSWORD):
        assert secret not in printed
        assert [path for path, content in written.items() if secret.encode() in content] == []
