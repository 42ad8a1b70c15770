"""meldkit pytorch: weights of any program, in files of torch.save and of safetensors."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import command
import tiny
from meldkit import merge_state_dicts
from meldkit.errors import CheckpointError, MeldError, OutputError
from meldkit.options import MergeOptions
from meldkit.raw import merge_raw, plan_raw

RECIPE = """\
merge_method: task_arithmetic
base_model: base.pt
models:
- {model: a.ckpt, parameters: {weight: 0.4}}
- {model: b.safetensors, parameters: {weight: 0.7}}
"""


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        OrderedDict(
            conv=torch.nn.Conv2d(2, 3, 3),
            norm=torch.nn.BatchNorm2d(3),
            lin=torch.nn.Linear(8, 5),
            out=torch.nn.Linear(8, 5),
        )
    )
    net.out.weight = net.lin.weight  # type: ignore[union-attr]
    net.norm.running_mean += torch.randn(3)  # type: ignore[operator,union-attr]
    return net


def training(net: torch.nn.Module) -> dict[str, Any]:
    """What a training program saves."""
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 7,
        "hyper_parameters": {"hidden": [8, 5], "name": "net"},
        "state_dict": net.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "rng_state": torch.get_rng_state(),
        "callbacks": {"best": {"score": torch.tensor(0.5)}},
        "metric": torch.tensor([1.0, 2.0]),
    }


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Three models in three formats, and a recipe; returns their weights."""
    monkeypatch.chdir(tmp_path)
    nets = [network(seed) for seed in range(3)]
    torch.save(training(nets[0]), "base.pt")
    weights = [{n: t.clone() for n, t in net.state_dict().items()} for net in nets]
    parallel = {f"module.{n}": t for n, t in weights[1].items()}
    torch.save({"state_dict": parallel}, "a.ckpt", _use_new_zipfile_serialization=False)
    save_file(weights[2], "b.safetensors")
    Path("recipe.yml").write_text(RECIPE)
    return weights


def expected(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return merge_state_dicts(weights[1:], "task_arithmetic", base=weights[0], weight=[0.4, 0.7])


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def names(folder: Path | str = ".") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


INPUTS = {"base.pt", "a.ckpt", "b.safetensors", "recipe.yml"}


def test_safetensors_file(files: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "pytorch", "recipe.yml", "out.safetensors")
    assert done.status == 0, done.err
    same(load_file("out.safetensors"), expected(files))
    assert names() == INPUTS | {"out.safetensors"}
    assert "written to out.safetensors" in done.out
    assert "safe_open('out.safetensors', 'pt')" in done.out
    assert "config.json" not in done.err


def test_json(files: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "pytorch", "recipe.yml", "out.pt", "--json")
    told = json.loads(done.out)
    assert told["path"] == "out.pt"
    assert told["tensors"] == len(expected(files))
    assert told["verification"]["num_tensors"] == told["tensors"]


@pytest.mark.parametrize("name", ["out.pt", "sub/out.pth", "out.ckpt", "pytorch_model.bin", "out.pth.tar"])
def test_torch_file(name: str, files: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "pytorch", "recipe.yml", name)
    assert done.status == 0, done.err
    content = torch.load(name, weights_only=True)
    assert list(content) == ["epoch", "hyper_parameters", "state_dict", "metric"]
    assert content["hyper_parameters"] == {"hidden": [8, 5], "name": "net"}
    assert torch.equal(content["metric"], torch.tensor([1.0, 2.0]))
    same(content["state_dict"], expected(files))
    assert list(content["state_dict"]) == list(files[0])
    assert content["state_dict"]._metadata == network(0).state_dict()._metadata  # type: ignore[attr-defined]
    network(5).load_state_dict(content["state_dict"])
    assert names(Path(name).parent) == ({"out.pth"} if "/" in name else INPUTS | {name})
    left_out = "optimizer_states, lr_schedulers, rng_state, callbacks"
    assert f"note: left out, as it is about training: {left_out}\n" in done.err
    assert "note: kept as it is in base.pt: epoch, hyper_parameters, metric\n" in done.err
    assert f"torch.load('{name}', weights_only=True)" in done.out


def test_tensors_that_were_one_are_one(files: list[dict[str, Tensor]]) -> None:
    del files
    merge_raw("recipe.yml", "out.pt")
    weights = torch.load("out.pt", weights_only=True)["state_dict"]
    assert weights["out.weight"].data_ptr() == weights["lin.weight"].data_ptr()
    assert Path("out.pt").stat().st_size < Path("base.pt").stat().st_size
    data = {
        "merge_method": "dare_linear",
        "base_model": "base.pt",
        "parameters": {"density": 0.5, "weight": 1},
        "models": [{"model": "a.ckpt"}],
    }
    # Here they come apart: each name draws its own random numbers.
    merge_raw(data, "random.pt")
    weights = torch.load("random.pt", weights_only=True)["state_dict"]
    assert weights["out.weight"].data_ptr() != weights["lin.weight"].data_ptr()


def test_folder(files: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(
        capsys, "pytorch", "recipe.yml", "out", "--out-shard-size", "200", "--no-write-model-card"
    )
    assert done.status == 0, done.err
    assert "model.safetensors.index.json" in names("out")
    assert "config.json" not in names("out")
    same(tiny.tensors(Path("out")), expected(files))
    assert command.run(capsys, "pytorch", "recipe.yml", "whole").status == 0
    same(load_file("whole/model.safetensors"), expected(files))


@pytest.mark.parametrize("legacy", [False, True])
def test_whatever_holds_the_weights_is_kept(legacy: bool, files: list[dict[str, Tensor]]) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    content = {
        "gen": {"w": parameter, "n": torch.tensor(3)},
        "dis": OrderedDict(w=torch.randn(2).bfloat16(), none=torch.zeros(0)),
        "optimizer": {"state": {0: torch.ones(3)}},
    }
    torch.save(content, "x.pt", _use_new_zipfile_serialization=not legacy)
    del files
    data = {"merge_method": "linear", "models": [{"model": "x.pt", "parameters": {"weight": 1}}]}
    notes: list[str] = []
    merge_raw(data, "y.pt", note=notes.append)
    found = torch.load("y.pt", weights_only=True)
    assert list(found) == ["gen", "dis"]
    assert notes == ["left out, as it is about training: optimizer"]
    assert isinstance(found["gen"]["w"], torch.nn.Parameter)
    assert torch.equal(found["gen"]["w"], parameter)
    assert found["gen"]["n"].item() == 3
    assert isinstance(found["dis"], OrderedDict)
    assert found["dis"]["w"].dtype is torch.bfloat16
    assert found["dis"]["none"].shape == (0,)


def test_donor_without_a_frame(files: list[dict[str, Tensor]]) -> None:
    """A model in safetensors makes a plain mapping."""
    models = [{"model": "b.safetensors"}, {"model": "a.ckpt"}]
    merge_raw({"merge_method": "linear", "parameters": {"weight": 0.5}, "models": models}, "out.pt")
    wanted = merge_state_dicts([files[2], files[1]], "linear", weight=0.5)
    same(torch.load("out.pt", weights_only=True), wanted)


def test_tensors_that_the_donor_lacks_come_along(files: list[dict[str, Tensor]]) -> None:
    more = files[0] | {"head.bias": torch.randn(4)}
    torch.save(more, "more.pt")
    for donor, wrapper in (("base.pt", ""), ("a.ckpt", "module.")):
        models = [{"model": donor}, {"model": "more.pt"}]
        merge_raw(
            {"merge_method": "linear", "parameters": {"weight": 0.5}, "models": models}, f"{donor}.out.pt"
        )
        found = torch.load(f"{donor}.out.pt", weights_only=True)["state_dict"]
        assert set(found) == {wrapper + name for name in more}
        assert torch.equal(found[wrapper + "head.bias"], more["head.bias"])


def test_layers_that_are_left_out_leave_the_frame_too() -> None:
    layers = {f"net.layers.{i}.w": torch.full((2,), float(i)) for i in range(3)}
    torch.save({"model": layers, "lr": 0.1}, "x.pt")
    parts = [{"sources": [{"model": "x.pt", "layer_range": r}]} for r in ([2, 3], [0, 1])]
    merge_raw({"merge_method": "passthrough", "slices": parts}, "out.pt")
    found = torch.load("out.pt", weights_only=True)
    assert found["lr"] == 0.1
    same(
        found["model"],
        {"net.layers.0.w": layers["net.layers.2.w"], "net.layers.1.w": layers["net.layers.0.w"]},
    )


@pytest.mark.parametrize("name", ["merged-v0.3", "net-3.1-8b", "a.b.7", "dots..."])
def test_names_of_versions_are_folders(name: str) -> None:
    merge_raw("recipe.yml", name)
    assert "model.safetensors" in names(name)


def test_a_folder_that_is_there_may_have_any_name() -> None:
    Path("out.onnx").mkdir()
    merge_raw("recipe.yml", "out.onnx")
    assert "model.safetensors" in names("out.onnx")


def test_what_lies_beside_a_file_has_no_say(files: list[dict[str, Tensor]]) -> None:
    Path("config.json").write_text(
        '{"num_hidden_layers": 99, "architectures": ["X"], "quantization_config": 1}'
    )
    Path("models").mkdir()
    for name in ("base.pt", "a.ckpt", "b.safetensors"):
        Path(name).rename(f"models/{name}")
    Path("models/config.json").write_text("no JSON")
    Path("models/tokenizer.json").write_text("{}")
    recipe = (
        RECIPE.replace(": base", ": models/base")
        .replace(": a", ": models/a")
        .replace(": b.s", ": models/b.s")
    )
    Path("recipe.yml").write_text(recipe)
    merge_raw("recipe.yml", "out", None)
    same(tiny.tensors(Path("out")), expected(files))
    assert not {"config.json", "tokenizer.json"} & names("out")


# ---- what cannot be done


def refused(out: str, error: type[MeldError], *, overwrite: bool = False, recipe: str = "recipe.yml") -> str:
    from meldkit.options import MergeOptions

    before = names()
    with pytest.raises(error) as caught:
        merge_raw(recipe, out, MergeOptions(overwrite=overwrite))
    assert names() == before
    return str(caught.value)


def test_outputs_that_are_there_already() -> None:
    Path("out.pt").write_text("mine")
    assert (
        refused("out.pt", OutputError) == "out.pt exists\n  name a new file, or add --overwrite to replace it"
    )
    Path("plain").write_text("mine")
    assert refused("plain", OutputError) == "plain is a file\n  name a folder"
    Path("folder.pt").mkdir()
    Path("folder.pt/x").write_text("mine")
    assert refused("folder.pt", OutputError).startswith("folder.pt is not empty: it has x")
    assert Path("out.pt").read_text() == "mine"
    assert refused("plain/out.pt", OutputError).startswith("cannot ")


@pytest.mark.parametrize(
    "name", ["out.onnx", "out.h5", "sub/out.gguf", "out.PT", "out.safetensor", "a.pt.gz"]
)
def test_formats_that_are_not_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = names()
    done = command.run(capsys, "pytorch", "recipe.yml", name, "--overwrite")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"error: {name} ends in {Path(name).suffix}, which is no format that is written\n"
        "  name a file that ends in .safetensors, .bin, .pt, .pth, .tar, .ckpt, or a folder: a name without "
        "ending, or one that is there\n"
    )
    with pytest.raises(OutputError):
        plan_raw("recipe.yml", Path(name))
    assert names() == before


def test_overwrite(files: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.safetensors").write_text("old")
    assert command.run(capsys, "pytorch", "recipe.yml", "out.safetensors", "--overwrite").status == 0
    same(load_file("out.safetensors"), expected(files))


@pytest.mark.parametrize("name", ["base.pt", "a.ckpt", "b.safetensors", "./base.pt", "link.pt"])
def test_inputs_are_never_written(name: str) -> None:
    Path("link.pt").symlink_to("base.pt")
    before = {path: Path(path).read_bytes() for path in INPUTS}
    message = refused(name, OutputError, overwrite=True)
    assert "is the input '" in message
    assert "inputs are never changed; name another file" in message
    assert before == {path: Path(path).read_bytes() for path in INPUTS}


class Config:
    """A class of a program of its own."""


def test_content_that_is_not_loaded() -> None:
    torch.save({"state_dict": {"x": torch.ones(2)}, "path": Path("/x")}, "p.pt")
    recipe = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: p.pt}]\n"
    Path("p.yml").write_text(recipe)
    message = refused("out.pt", CheckpointError, recipe="p.yml")
    assert re.fullmatch(
        r"p\.pt holds more than weights, and torch does not load it: it names 'pathlib[\w.]*\.PosixPath'\n"
        r"  write to a \.safetensors file or a folder, which take the weights alone",
        message,
    )
    merge_raw("p.yml", "out.safetensors")
    assert torch.equal(load_file("out.safetensors")["x"], torch.ones(2))
    torch.save({"state_dict": {"x": torch.ones(2)}, "config": Config()}, "p.pt")
    assert "wants to load '" in refused("out.safetensors.pt", CheckpointError, recipe="p.yml")


@pytest.mark.parametrize(
    ("change", "status", "part"),
    [
        (lambda: Path("a.ckpt").unlink(), 3, "model 'a.ckpt' does not exist"),
        (lambda: os.truncate("a.ckpt", 600), 3, "a.ckpt"),
        (lambda: Path("recipe.yml").write_text("x: 1"), 2, "recipe.yml"),
        (lambda: torch.save({"x": torch.ones(2)}, "a.ckpt"), 3, "lacks"),
        (lambda: torch.save([1], "a.ckpt"), 3, "holds no weights"),
        (lambda: Path("a.ckpt").write_bytes(b"\x80\x02cos\nsystem\nU\x04true\x85R."), 3, "'os.system'"),
    ],
)
def test_failures_are_messages(
    change: Any, status: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change()
    before = names()
    done = command.run(capsys, "pytorch", "recipe.yml", "out.pt")
    assert (done.status, done.out) == (status, "")
    assert part in done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert names() == before


def test_shapes_that_differ(files: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]) -> None:
    save_file(files[2] | {"lin.bias": torch.ones(6)}, "b.safetensors")
    done = command.run(capsys, "pytorch", "recipe.yml", "out.pt")
    assert done.status == 3
    assert "tensor 'lin.bias' has shape [5] in 'base.pt' and [6] in 'b.safetensors'" in done.err


def test_flags_of_mergekit_pytorch(
    files: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--lazy-unpickle", "--low-cpu-memory", "--allow-crimes", "--trust-remote-code", "--quiet")
    done = command.run(capsys, "pytorch", "recipe.yml", "out.pt", *flags, "--random-seed", "3", "-j", "1")
    assert (done.status, done.out, done.err) == (0, "", "")
    same(torch.load("out.pt", weights_only=True)["state_dict"], expected(files))
    done = command.run(capsys, "pytorch", "recipe.yml", "folder", "--no-safe-serialization")
    assert done.status == 2
    assert "name a file such as OUT.pt instead" in done.err


def test_interrupted_merges_leave_nothing_and_continue(
    files: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import meldkit.api as api

    real = api.run_jobs

    def stop(jobs: Any, *args: Any, **options: Any) -> None:
        real(jobs[:3], *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run_jobs", stop)
    for out in ("out.pt", "out.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            merge_raw("recipe.yml", out)
        assert not Path(out).exists()
    monkeypatch.setattr(api, "run_jobs", real)
    for out in ("out.pt", "out.safetensors"):
        assert merge_raw("recipe.yml", out).num_resumed == 3
    same(load_file("out.safetensors"), expected(files))
    assert names() == INPUTS | {"out.pt", "out.safetensors"}


class Killed(BaseException):
    """Ends a run as a kill does."""


@pytest.mark.parametrize("moment", ["while saving", "before the file has its name", "after that"])
def test_killed_while_the_file_is_written(
    moment: str, files: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save, Path.replace

    def half(content: object, target: Path) -> None:
        real[0](content, target)
        os.truncate(target, target.stat().st_size // 2)
        raise Killed

    def never(*_: object) -> None:
        raise Killed

    def late(path: Path, out: Path) -> None:
        real[1](path, out)
        raise Killed

    owner, name, fault = {
        "while saving": (torch, "save", half),
        "before the file has its name": (Path, "replace", never),
        "after that": (Path, "replace", late),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        with pytest.raises(Killed):
            merge_raw("recipe.yml", "out.pt")
    assert Path("out.pt").exists() == (moment == "after that")
    result = merge_raw("recipe.yml", "out.pt", MergeOptions(overwrite=True))
    assert (result.num_resumed, result.bytes_read) == (len(result.plan.jobs), 0)
    same(torch.load("out.pt", weights_only=True)["state_dict"], expected(files))
    assert names() == INPUTS | {"out.pt"}


def test_disk_that_fills_up_while_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        MeldError, match=r"(?s)cannot write .*unexpected pos 64 vs 0\n  free some space"
    ) as caught:
        merge_raw("recipe.yml", "out.pt")
    assert caught.value.exit_status == 4
    assert not Path("out.pt").exists()
    monkeypatch.undo()


def test_plan_reads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", None)
    plan = plan_raw("recipe.yml", Path("out.pt"))
    assert len(plan.files) == 1
    assert plan.config is None
    assert not plan.warnings


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "params_ema"])
def test_averages_over_the_training_are_left_out(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs prefer them to the weights; a merge has none."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.pt", "b.pt")):
        torch.save(
            {"state_dict": {"w": torch.full((2,), 4.0 * i)}, key: {"w": torch.ones(2)}, "epoch": 3}, name
        )
    Path("r.yml").write_text(
        "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a.pt}, {model: b.pt}]\n"
    )
    merge_raw("r.yml", "out.pt", None)
    content = torch.load("out.pt", weights_only=True)
    assert content.keys() == {"state_dict", "epoch"}
    assert content["state_dict"]["w"].tolist() == [2, 2]
