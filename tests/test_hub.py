"""References to models of the Hugging Face Hub, found in its local cache; no test touches the network."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

import tiny
from meldkit.checkpoint import open_model
from meldkit.errors import CheckpointError, MeldError
from meldkit.recipe import ModelRef

MAIN, OLD = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, as HF_HUB_OFFLINE=1 makes it; and an error that nothing catches, should anyone connect."""
    import huggingface_hub.constants

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def cached(cache: Path, repo: str, model: Path, commit: str, *refs: str) -> None:
    """Put a model into a cache as the hub's client lays it out: blobs, links to them, names of commits."""
    root = cache / ("models--" + repo.replace("/", "--"))
    snapshot = root / "snapshots" / commit
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(model.iterdir()):
        blob = root / "blobs" / f"{commit[:4]}{path.name}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    for ref in refs:
        (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / ref).write_text(commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cached(tmp_path / "hub", "org/name", tiny.llama(tmp_path / "new", 0, layers=3), MAIN, "main", "v2")
    cached(tmp_path / "hub", "org/name", tiny.llama(tmp_path / "old", 0, layers=2), OLD, "v1.0", "pr/7")
    return Path("hub")


@pytest.mark.parametrize(
    ("reference", "layers"),
    [
        ("org/name", 3),
        ("org/name@main", 3),
        ("org/name@v2", 3),
        ("org/name@v1.0", 2),
        ("org/name@pr/7", 2),
        (f"org/name@{OLD}", 2),
        (f"org/name@{MAIN}", 3),
    ],
)
def test_cached_models_are_found(reference: str, layers: int, cache: Path) -> None:
    checkpoint = open_model(ModelRef.parse(reference), cache=cache)
    assert checkpoint.label == reference
    assert checkpoint.config["num_hidden_layers"] == layers
    assert max(int(name.split(".")[2]) for name in checkpoint if "layers" in name) == layers - 1
    assert checkpoint.folder.name == (MAIN if layers == 3 else OLD)


def test_the_same_through_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache.absolute()))
    assert open_model(ModelRef.parse("org/name")).config["num_hidden_layers"] == 3


def test_cached_adapters_are_found(cache: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 32), f"{module}.lora_B.weight": torch.ones(32, 2)}
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    cached(cache, "me/lora", tmp_path / "lora", "c" * 40, "main", "exp")
    checkpoint = open_model(ModelRef.parse("org/name@v1.0+me/lora@exp"), cache=cache)
    assert not checkpoint.plain("model.layers.0.self_attn.q_proj.weight")
    assert checkpoint.config["num_hidden_layers"] == 2


def test_a_folder_comes_before_the_hub(cache: Path) -> None:
    tiny.llama(Path("org/name"), 0, layers=1)
    assert open_model(ModelRef.parse("org/name"), cache=cache).config["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("org/other", "it"),
        ("org/name@nothing", "its revision 'nothing'"),
        ("org/name@" + "c" * 40, f"its revision '{'c' * 40}'"),
    ],
)
def test_what_is_not_cached(reference: str, what: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "usual")
    for chosen, place in ((cache, "hub"), (None, "usual")):
        with pytest.raises(CheckpointError) as caught:
            open_model(ModelRef.parse(reference), cache=chosen)
        name = reference.partition("@")[0]
        assert str(caught.value) == (
            f"model '{name}' is neither a local path nor to be had from the Hugging Face Hub: "
            f"HF_HUB_OFFLINE is set, and {what} is not in {place}\n"
            "  unset HF_HUB_OFFLINE to download it, or name the folder that it was downloaded to with "
            "--transformers-cache or HF_HOME"
        )


PATHS = [
    *(
        "./models/a",
        "../a",
        "/no/such",
        "/no",
        "a/b/c",
        "models/",
        ".",
        "..",
        "./a",
        "~/no-such-model-of-mine",
    ),
    *(
        "C:\\models\\a",
        "C:/models",
        "models\\a",
        "org/name.safetensors/x",
        "my models/a",
        "-x/y",
        "a//b",
        "a/",
    ),
    *("org/na\0me", "org/nämé", "org/name\n", "file:///a/b", "org/.hidden"),
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_not_looked_up_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    (tmp_path / "here" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "inner")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", called)
    for reference in (ModelRef(path), ModelRef(path, "main")):
        with pytest.raises(MeldError):
            open_model(reference)


def test_message_for_a_missing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_model(ModelRef.parse("./models/a"))
    assert str(caught.value) == (
        f"model './models/a' does not exist\n  looked for {tmp_path}/models/a; check the path in the recipe"
    )
    with pytest.raises(CheckpointError) as caught:
        open_model(ModelRef.parse("gpt2"))
    assert str(caught.value) == (
        f"model 'gpt2' does not exist\n  looked for {tmp_path}/gpt2; check the path in the recipe; "
        "a model of the Hugging Face Hub is written org/name"
    )


def test_paths_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_model(ModelRef("x" * 5000))
    assert caught.value.message.endswith("cannot be opened: File name too long")
    with pytest.raises(CheckpointError) as caught:
        open_model(ModelRef("~no-such-user/model"))
    assert caught.value.message.startswith("model '~no-such-user/model' cannot be opened: ")

    def denied(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(CheckpointError) as caught:
        open_model(ModelRef("/root/model"))
    assert str(caught.value) == (
        "model '/root/model' cannot be opened: Permission denied\n  check the path in the recipe"
    )


def test_every_failure_of_the_client_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    monkeypatch.chdir(tmp_path)
    # What the HTTP library raises for a broken proxy or connection has no relation to OSError.
    transport = HfHubHTTPError.__bases__[0]
    for error in (transport("proxy"), ConnectionError("down"), HFValidationError("id"), OSError()):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError) as caught:
            open_model(ModelRef("org/name"))
        assert caught.value.message == (
            "model 'org/name' is neither a local path nor to be had from the Hugging Face Hub: "
            + (str(error) or type(error).__name__)
        )


def test_with_the_variable_set_in_a_new_process(cache: Path) -> None:
    """The switch that people use, instead of the constant that the other tests set."""
    import subprocess
    import sys

    program = (
        "from pathlib import Path; from meldkit.checkpoint import open_model; "
        "from meldkit.recipe import ModelRef; print(len(open_model(ModelRef.parse('org/name'))))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.absolute())}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == len(open_model(ModelRef.parse("org/name"), cache=cache))
