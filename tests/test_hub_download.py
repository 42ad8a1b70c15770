"""Downloads from a hub of our own that stands in for Hugging Face's: what is asked for, and what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import command
import tiny
from hub_models import MAIN, OLD, model, put, sharded
from hub_server import Hub
from meldkit.checkpoint import open_model
from meldkit.errors import CheckpointError
from meldkit.recipe import ModelRef


def opened(reference: str = "org/name") -> set[str]:
    """The names of the files in the snapshot of a model, opened."""
    checkpoint = open_model(ModelRef.parse(reference), cache=Path("hub"))
    assert len(checkpoint) > 3
    folder = checkpoint.folder
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(reference: str = "org/name") -> str:
    with pytest.raises(CheckpointError) as caught:
        open_model(ModelRef.parse(reference), cache=Path("hub"))
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


#: The same weights in formats that are not needed, and what belongs to them.
SURPLUS = {
    "pytorch_model.bin": b"surplus",
    "model.fp16.safetensors": b"surplus",
    "consolidated.safetensors": b"surplus",
    "original/consolidated.00.pth": b"surplus",
    "original/params.json": b"{}",
    "onnx/model.onnx": b"surplus",
    "onnx/config.json": b"{}",
    "tf_model.h5": b"surplus",
    "model.Q4.gguf": b"surplus",
    "image.png": b"surplus",
    ".gitattributes": b"surplus",
    "pytorch_model.bin.index.json": b"{}",
}


def test_only_what_is_needed_is_fetched(hub: Hub) -> None:
    files = model()
    put(hub, files | SURPLUS)
    assert opened() == set(files)
    assert {name.rpartition("/")[2] for name in hub.fetched()} == set(files)


def test_shards_that_the_index_names(hub: Hub) -> None:
    files = sharded()
    stray = {"model-00003-of-00003.safetensors": b"of another upload", "extra.safetensors": b"surplus"}
    put(hub, files | SURPLUS | stray)
    assert opened() == set(files)


def test_pickled_weights_if_there_are_no_others(hub: Hub) -> None:
    files = model()
    del files["model.safetensors"]
    torch.save(tiny.tensors(Path("made-0-2")), "w.bin")
    files["pytorch_model.bin"] = Path("w.bin").read_bytes()
    put(hub, {**SURPLUS, **files})
    assert opened() == set(files)


def test_nothing_is_fetched_twice(hub: Hub) -> None:
    put(hub, sharded())
    first = opened()
    hub.requests.clear()
    assert opened() == first
    assert not [request for request in hub.requests if "/resolve/" in request or "/cdn/" in request]


@pytest.mark.parametrize("reference", ["org/name", f"org/name@{MAIN}", "org/name@v1", f"org/name@{OLD}"])
def test_without_a_connection_the_cache_will_do(
    reference: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    repository = put(hub, model(0) | SURPLUS)
    repository.files[OLD] = model(1, layers=3) | SURPLUS
    repository.refs["v1"] = OLD
    first = opened(reference)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert opened(reference) == first
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.down = True
    assert opened(reference) == first
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert opened(reference) == first


def test_revisions(hub: Hub) -> None:
    repository = put(hub, model(0, layers=2))
    repository.files[OLD] = model(1, layers=3)
    repository.refs |= {"v1.0": OLD, "refs/pr/7": OLD}
    for revision, layers in (("main", 2), ("v1.0", 3), ("refs/pr/7", 3), (OLD, 3), (MAIN, 2)):
        checkpoint = open_model(ModelRef("org/name", revision), cache=Path("hub"))
        assert checkpoint.config["num_hidden_layers"] == layers
    assert refused("org/name@v2") == (
        "model 'org/name' is neither a local path nor to be had from the Hugging Face Hub: "
        "it has no revision 'v2'\n  check the spelling; a revision is a branch, a tag or a whole commit hash"
    )


def test_private_repositories(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, model(), token="hf_secret")
    start = "model 'org/name' is neither a local path nor to be had from the Hugging Face Hub: "
    hint = "\n  check the spelling, your connection, and HF_TOKEN for private or gated models"
    assert refused() == f"{start}it does not exist, or is private{hint}"
    assert refused("org/other").startswith(start.replace("name", "other"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refused() == f"{start}it does not exist, or is private{hint}"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "model.safetensors" in opened()


def test_gated_repositories(hub: Hub) -> None:
    repository = put(hub, model(), gated=True)
    assert refused() == (
        "model 'org/name' is neither a local path nor to be had from the Hugging Face Hub: "
        "access to it must be asked for\n"
        "  ask for access at https://huggingface.co/org/name, and set HF_TOKEN to a token of yours"
    )
    repository.gated = False
    assert "model.safetensors" in opened()


def test_interrupted_downloads_are_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.file_download as client

    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    monkeypatch.setattr(client.logger, "disabled", True)
    monkeypatch.setattr(client.constants, "DOWNLOAD_CHUNK_SIZE", 64)
    files = model()
    put(hub, files)
    hub.cut = 2
    assert opened() == set(files)
    assert hub.cut == 0
    assert hub.ranges
    assert all(int(asked[6:-1]) > 0 for asked in hub.ranges)
    stored = open_model(ModelRef("org/name"), cache=Path("hub")).files()[0]
    assert stored.read_bytes() == files["model.safetensors"]


def test_hub_that_is_down(hub: Hub) -> None:
    hub.down = True
    message = refused()
    assert "to be had from the Hugging Face Hub: " in message
    assert "500" in message


@pytest.mark.parametrize("reference", ["org/name/sub/b.safetensors", "org/name:sub/b.safetensors@v1"])
def test_one_file_of_many(reference: str, hub: Hub) -> None:
    files = model()
    weights = files.pop("model.safetensors")
    repository = put(hub, files | {"sub/b.safetensors": weights, "a.safetensors": b"surplus"})
    repository.refs["v1"] = MAIN
    checkpoint = open_model(ModelRef.parse(reference), cache=Path("hub"))
    assert checkpoint.files()[0].name == "b.safetensors"
    assert not [request for request in hub.requests if "a.safetensors" in request]
    hub.down = True
    assert open_model(ModelRef.parse(reference), cache=Path("hub")).keys() == checkpoint.keys()


def test_file_that_is_not_there(hub: Hub) -> None:
    put(hub, {"a.Q4.gguf": b"", "a.Q8.gguf": b"", "config.json": b"{}"})
    assert refused("org/name/b.gguf") == (
        "model 'org/name' on the Hugging Face Hub has no file 'b.gguf'\n  it has a.Q4.gguf, a.Q8.gguf"
    )
    assert refused("org/name") == (
        "model 'org/name' on the Hugging Face Hub has neither model.safetensors nor pytorch_model.bin, "
        "but a.Q4.gguf, a.Q8.gguf\n  name the file that is meant: org/name/a.Q4.gguf"
    )
    put(hub, {"config.json": b"{}"})
    assert refused("org/name") == (
        "model 'org/name' on the Hugging Face Hub has no weights\n  check the spelling"
    )
    assert not hub.fetched()


def test_a_gguf_file_needs_nothing_but_its_card(hub: Hub) -> None:
    put(hub, model() | {"a.Q4.gguf": b"damaged"})
    assert "a.Q4.gguf" in refused("org/name/a.Q4.gguf")
    assert {name.rpartition("/")[2] for name in hub.fetched()} == {"a.Q4.gguf", "README.md"}


def test_all_parts_of_a_split_gguf_model_are_fetched(hub: Hub) -> None:
    parts = [f"a-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    # Files of equal content would be fetched once.
    put(hub, model() | {name: name.encode() for name in (*parts, "b-00001-of-00003.gguf")})
    assert "is not a GGUF file" in refused(f"org/name/{parts[1]}")
    assert {name.rpartition("/")[2] for name in hub.fetched()} == {*parts, "README.md"}


def test_adapters(hub: Hub) -> None:
    put(hub, model())
    folder = tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    surplus = {"adapter_model.bin": b"surplus", "training_args.bin": b"surplus", "optimizer.pt": b"surplus"}
    put(hub, files | surplus, "me/lora")
    checkpoint = open_model(ModelRef.parse("org/name+me/lora"), cache=Path("hub"))
    assert not checkpoint.plain("model.layers.0.self_attn.q_proj.weight")
    fetched = {name.rpartition("/")[2] for name in hub.fetched()}
    assert set(files) <= fetched
    assert not fetched & set(surplus)


def test_parts_of_sentence_transformers(hub: Hub) -> None:
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    parts = {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": save({"linear.bias": torch.ones(2)}),
    }
    surplus = {"2_Dense/pytorch_model.bin": b"surplus", "openvino/config.json": b"{}", "openvino/w.bin": b""}
    files = model()
    put(hub, files | parts | surplus)
    assert opened() == set(files) | set(parts)


def test_damaged_index(hub: Hub) -> None:
    files = sharded()
    for content in (b"no json", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}'):
        put(hub, files | {"model.safetensors.index.json": content}, f"org/n{len(content)}")
        assert "model.safetensors.index.json" in refused(f"org/n{len(content)}")


def test_merge_of_two_references(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub, model(0), "org/a")
    put(hub, sharded(1), "org/b")
    Path("recipe.yml").write_text(
        "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: org/a}, {model: org/b}]\n"
    )
    done = command.run(capsys, "merge", "recipe.yml", "out", "--transformers-cache", "hub")
    assert done.status == 0, done.err
    a, b = tiny.tensors(Path("made-0-2")), tiny.tensors(Path("made-1-2"))
    for name, tensor in tiny.tensors(Path("out")).items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
    assert (Path("out") / "tokenizer.json").exists()
    assert (Path("out") / "LICENSE").read_bytes() == b"free"


def test_the_switches_of_the_environment(hub: Hub) -> None:
    """HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE, in processes that are told nothing else."""
    put(hub, model(), token="hf_secret")
    program = (
        "from meldkit.checkpoint import open_model; from meldkit.recipe import ModelRef; "
        "print(len(open_model(ModelRef.parse('org/name'))))"
    )

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"HF_HOME": "home", "HF_ENDPOINT": hub.url} | variables
        environment = {k: v for k, v in environment.items() if not k.lower().endswith("_proxy")}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )

    first = run(HF_TOKEN="hf_secret")
    assert first.returncode == 0, first.stderr
    hub.requests.clear()
    second = run(HF_HUB_OFFLINE="1")
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert not hub.requests
