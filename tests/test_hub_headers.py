"""Planning with models of a hub: their headers are enough, and are fetched once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import command
import gguf_files
import tiny
import word_tokenizers
from hub_models import MAIN, OLD, heads, model, put, wide
from hub_server import Hub
from meldkit import api
from meldkit.checkpoint import Checkpoint, open_files, open_model
from meldkit.checkpoint.ranges import BLOCK
from meldkit.errors import CheckpointError, MismatchError, RunError
from meldkit.options import MergeOptions
from meldkit.recipe import ModelRef

RECIPE = {
    "merge_method": "linear",
    "parameters": {"weight": 0.5},
    "models": [{"model": "org/a"}, {"model": "org/b"}],
}
OPTIONS = MergeOptions(transformers_cache="hub")


def looked_at(reference: str = "org/name") -> Checkpoint:
    return open_model(ModelRef.parse(reference), cache=Path("hub"), headers_only=True)


def content_asked_for(hub: Hub) -> list[str]:
    return [r for r in hub.requests if r.startswith("GET ") and ("/resolve/" in r or "/cdn/" in r)]


def same(one: Checkpoint, other: Checkpoint) -> None:
    """All but where it lies."""
    assert {n: (t.dtype, t.shape, t.nbytes) for n, t in one.items()} == {
        n: (t.dtype, t.shape, t.nbytes) for n, t in other.items()
    }
    assert (one.fingerprint, one.config) == (other.fingerprint, other.config)


def test_only_the_heads_of_shards_are_fetched(hub: Hub) -> None:
    files = wide(6)
    put(hub, files)
    found = looked_at()
    assert hub.sent < heads(files) + 6 * 2 * BLOCK
    assert len(hub.ranges) == 6
    assert sum(found.absent.values()) == sum(len(d) for n, d in files.items() if n.endswith(".safetensors"))
    assert sum(path.stat().st_blocks * 512 for path in found.absent) < 6 * 10 * BLOCK
    assert not list(Path("hub").glob("models--*/**/*.safetensors"))
    whole = open_model(ModelRef.parse("org/name"), cache=Path("hub"))
    assert not whole.absent
    same(found, whole)


def test_a_long_head_takes_a_second_request(hub: Hub) -> None:
    tensors = {f"model.layers.0.mlp.experts.{n}.up_proj.weight": torch.zeros(1) for n in range(3000)}
    put(hub, {"config.json": b"{}", "model.safetensors": save(tensors)})
    assert len(looked_at()) == 3000
    assert [r.split("-")[0] for r in hub.ranges] == ["bytes=0", f"bytes={1 << 16}"]


def test_a_second_look_asks_for_the_revision_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    repository = put(hub, wide())
    repository.refs["pr/7"] = MAIN
    references = ("org/name", "org/name@pr/7", f"org/name@{MAIN}")
    first = [looked_at(reference) for reference in references]
    for found in first:
        same(first[0], found)
    hub.requests.clear()
    for reference in references:
        looked_at(reference)
    assert len(hub.requests) == 3
    assert not content_asked_for(hub)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for reference in references:
        same(looked_at(reference), first[0])
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.down = True
    same(looked_at(), first[0])
    # The weights are not there: that is said, and not that the model is damaged.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, and it is not in hub"):
        open_model(ModelRef.parse("org/name"), cache=Path("hub"))


def test_a_model_in_the_cache_is_used_from_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    put(hub, wide())
    whole = open_model(ModelRef.parse("org/name"), cache=Path("hub"))
    hub.requests.clear()
    found = looked_at()
    assert hub.requests == ["GET /api/models/org/name"]
    assert (found.folder, found.absent) == (whole.folder, {})
    assert not (Path("hub") / ".meldkit").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert looked_at().folder == whole.folder


def test_files_in_the_cache_are_not_to_download(hub: Hub) -> None:
    files = wide()
    repository = put(hub, files)
    open_model(ModelRef.parse("org/name"), cache=Path("hub"))
    repository.files[OLD] = files | {"config.json": files["config.json"] + b" "}
    repository.files[OLD].pop("model-00004-of-00004.safetensors")
    third = "model-00003-of-00004.safetensors"
    repository.files["c" * 40] = files | {third: files[third][:-4] + b"\0\0\0\0"}
    found = looked_at("org/name@" + "c" * 40)
    # Equal files are recognised when they are downloaded; here it counts what the snapshot has.
    assert len(found.absent) == 4
    snapshot = open_model(ModelRef.parse("org/name@" + "c" * 40), cache=Path("hub")).folder
    (snapshot / third).unlink()
    again = looked_at("org/name@" + "c" * 40)
    assert {path.name for path in again.absent} == {third}
    same(again, found)


def test_a_branch_that_moves(hub: Hub) -> None:
    repository = put(hub, wide(2))
    assert looked_at().config["num_hidden_layers"] == 2
    repository.files[OLD] = wide(3)
    repository.refs["main"] = OLD
    assert looked_at().config["num_hidden_layers"] == 3
    hub.down = True
    assert looked_at().config["num_hidden_layers"] == 3
    assert looked_at(f"org/name@{MAIN}").config["num_hidden_layers"] == 2


def test_weights_are_not_read_from_a_stand_in(hub: Hub) -> None:
    put(hub, wide())
    found = looked_at()
    name = "model.layers.0.mlp.down_proj.weight"
    with open_files() as files:
        for read in (found.source, found.stored):
            with pytest.raises(RunError) as caught:
                read(files, name)
    assert str(caught.value) == (
        f"model 'org/name' has not been downloaded: of '{name}' only the header is here\n"
        "  open the model without headers_only"
    )


def test_formats_whose_head_tells_everything(hub: Hub) -> None:
    """Files of torch.save and GGUF files: nothing of their weights is asked for, and the same is found."""
    files = model()
    weights = {n: t for n, t in tiny.tensors(Path("made-0-2")).items() if n != "big"}
    del files["model.safetensors"]
    big = torch.ones(500, 1000)
    for number in range(4):
        weights[f"model.layers.0.mlp.experts.{number}.up_proj.weight"] = big.clone()
    weights["model.layers.0.turned"] = big.clone().T
    torch.save(weights, "w.bin")
    content = Path("w.bin").read_bytes()
    put(hub, files | {"pytorch_model.bin": content}, "org/zip")
    found = looked_at("org/zip")
    assert hub.sent < 5 * (1 << 16) < len(content)
    assert list(found.absent.values()) == [len(content)]
    same(found, open_model(ModelRef.parse("org/zip"), cache=Path("hub")))


def test_gguf_files(hub: Hub) -> None:
    tensors = gguf_files.llama_tensors(hidden=640)
    tensors |= {"rope_freqs.weight": np.ones(32, np.float32)}
    tensors |= {"output.weight": np.ones((32, 640), np.float32)}
    keys = gguf_files.LLAMA_KEYS | {"embedding_length": 640, "feed_forward_length": 1280}
    path = gguf_files.write_gguf(Path("made.gguf"), "llama", keys, tensors)
    put(hub, {"a.gguf": path.read_bytes()}, "org/gguf")
    found = looked_at("org/gguf/a.gguf")
    assert hub.sent < path.stat().st_size / 2
    assert found.gguf is not None
    same(found, open_model(ModelRef.parse("org/gguf/a.gguf"), cache=Path("hub")))


def test_what_has_no_head_is_downloaded(hub: Hub) -> None:
    files = model()
    del files["model.safetensors"]
    torch.save(tiny.tensors(Path("made-0-2")), "w.bin", _use_new_zipfile_serialization=False)
    put(hub, files | {"pytorch_model.bin": Path("w.bin").read_bytes()})
    found = looked_at()
    assert not found.absent
    assert found.notes == (
        "model 'org/name' is downloaded to plan: the format of pytorch_model.bin has no head",
    )
    assert not looked_at().notes


def test_a_server_that_sends_whole_files_only(hub: Hub) -> None:
    put(hub, wide())
    hub.whole = True
    found = looked_at()
    assert not found.absent
    assert found.notes == ("model 'org/name' is downloaded to plan: its server sends whole files only",)
    same(found, open_model(ModelRef.parse("org/name"), cache=Path("hub")))


def test_empty_and_damaged_files(hub: Hub) -> None:
    files = model()
    for number, (content, what) in enumerate(
        [
            (b"", "has 0 bytes, too few for a safetensors file"),
            (b"\xff" * 100, "says its header has 18,446,744,073,709,551,615 bytes"),
            (files["model.safetensors"][:-1], "is truncated"),
        ]
    ):
        put(hub, files | {"model.safetensors": content}, f"org/n{number}")
        with pytest.raises(CheckpointError, match=what):
            looked_at(f"org/n{number}")


def test_heads_that_break_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.checkpoint.ranges as ranges

    monkeypatch.setattr(ranges, "_WAIT", 0)
    put(hub, wide())
    hub.cut = 2
    found = looked_at()
    put(hub, wide(), "org/other")
    hub.cut = 1000
    with pytest.raises(CheckpointError, match="to be had from the Hugging Face Hub"):
        looked_at("org/other")
    hub.cut = 0
    folder = found.folder.parent.with_name("org--other")
    assert not [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".part")]
    same(looked_at("org/other"), found)


def test_a_server_that_is_busy_is_asked_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.checkpoint.ranges as ranges

    monkeypatch.setattr(ranges, "_WAIT", 0)
    put(hub, wide())
    hub.busy = 2
    found = looked_at()
    assert hub.busy == 0
    put(hub, wide(), "org/other")
    same(looked_at("org/other"), found)
    put(hub, wide(), "org/third")
    hub.busy = 1000
    with pytest.raises(CheckpointError, match="429"):
        looked_at("org/third")


def test_many_at_the_same_time(hub: Hub) -> None:
    put(hub, wide())
    found: list[Checkpoint] = []
    threads = [threading.Thread(target=lambda: found.append(looked_at())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for checkpoint in found:
        same(checkpoint, found[0])
    assert not list(Path("hub").rglob("*.part"))


def test_gated_and_private_models(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = put(hub, wide(), gated=True)
    with pytest.raises(CheckpointError, match="access to it must be asked for"):
        looked_at()
    repository.gated = False
    repository.token = "hf_secret"
    with pytest.raises(CheckpointError, match="it does not exist, or is private"):
        looked_at()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(looked_at()) > 3
    # Whoever keeps the files must not learn it.
    assert not hub.tokens


def test_adapters(hub: Hub) -> None:
    put(hub, wide())
    folder = tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)})
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/name"})
    )
    put(hub, {path.name: path.read_bytes() for path in folder.iterdir()}, "me/lora")
    for reference in ("org/name+me/lora", "me/lora"):
        found = looked_at(reference)
        assert {path.name for path in found.absent} >= {"adapter_model.safetensors"}
        same(found, open_model(ModelRef.parse(reference), cache=Path("other")))


def test_without_a_folder_of_ones_own(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("usual").absolute()))
    put(hub, wide())
    found = open_model(ModelRef.parse("org/name"), headers_only=True)
    assert found.folder == Path(constants.HF_ASSETS_CACHE) / "meldkit/headers/org--name" / MAIN
    assert (Path("usual/models--org--name/snapshots") / MAIN / "config.json").exists()


def test_a_plan_downloads_nothing_and_a_merge_the_rest(hub: Hub, tmp_path: Path) -> None:
    files = wide()
    put(hub, files, "org/a")
    put(hub, files | {"config.json": files["config.json"] + b"\n"}, "org/b")
    plan = api.plan(RECIPE, OPTIONS, headers_only=True)
    size = sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    assert (len(plan.to_download), sum(plan.to_download.values())) == (8, 2 * size)
    assert hub.sent < 2 * heads(files) + 16 * BLOCK
    for number, recipe in enumerate((RECIPE, plan)):
        result = api.merge(recipe, tmp_path / str(number), OPTIONS)
        assert result.plan.digest() == plan.digest()
        assert not result.plan.to_download
        merged = tiny.tensors(tmp_path / str(number))["model.layers.1.mlp.down_proj.weight"]
        torch.testing.assert_close(merged, torch.full((1000, 1000), 2.0))


def test_what_would_fail_fails_before_the_download(hub: Hub) -> None:
    put(hub, wide(4), "org/a")
    put(hub, wide(3), "org/b")
    with pytest.raises(MismatchError):
        api.merge(RECIPE, "out", OPTIONS)
    assert hub.sent < 1e6


def test_a_branch_that_moves_between_plan_and_download(hub: Hub) -> None:
    put(hub, wide(2), "org/a")
    repository = put(hub, wide(2), "org/b")
    plan = api.plan(RECIPE, OPTIONS, headers_only=True)
    for name in ("org/a", "org/b"):
        hub.repositories[name].files[OLD] = wide(3)
        hub.repositories[name].refs["main"] = OLD
    with pytest.raises(RunError) as caught:
        api.merge(plan, "out", OPTIONS)
    assert str(caught.value) == (
        "what was downloaded is not what was planned\n"
        "  a model changed on the hub meanwhile, or the plan was made with other options; plan again"
    )
    assert repository.refs["main"] == OLD
    assert not Path("out").exists()


def test_a_model_that_gives_its_tokenizer_only(hub: Hub) -> None:
    words = ["<s>", "a", "b", "c"]
    for name, listed in (("a", words), ("b", words), ("words", [*words, "d"])):
        content = word_tokenizers.content({word: number for number, word in enumerate(listed)})
        folder = word_tokenizers.model(Path(name), content)
        put(hub, {path.name: path.read_bytes() for path in folder.iterdir()}, f"org/{name}")
    api.merge(RECIPE | {"tokenizer": {"source": "org/words"}}, "out", OPTIONS)
    assert word_tokenizers.numbers(Path("out"))["d"] == 4
    downloaded = {path.parts[1] for path in Path("hub").rglob("model.safetensors")}
    assert downloaded == {".meldkit", "models--org--a", "models--org--b"}


@pytest.mark.parametrize("name", ["plan", "inspect"])
def test_commands_fetch_heads(name: str, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub, wide(), "org/a")
    put(hub, wide(), "org/b")
    Path("recipe.yml").write_text(json.dumps(RECIPE))
    what = "recipe.yml" if name == "plan" else "org/a"
    done = command.run(capsys, name, what, "--transformers-cache", "hub")
    assert done.status == 0, done.err
    assert hub.sent < 1e6
