"""Files of torch.save: whatever torch writes is read bit for bit, and nothing that is in them is ever run."""

from __future__ import annotations

import argparse
import datetime
import encodings.cp437  # noqa: F401 - `zipfile` would import it while a test looks for imports
import functools
import io
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import command
import tiny
from meldkit.api import merge
from meldkit.checkpoint import DTYPES, Header, Scratch, open_checkpoint, open_files
from meldkit.checkpoint.pickled import read_pickled
from meldkit.checkpoint.pickled.state_dict import find_weights
from meldkit.errors import CheckpointError, MeldError

FORMATS = {"zip": True, "legacy": False}


@pytest.fixture(params=FORMATS)
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Saves with torch in both formats."""

    def saved(content: object, name: str = "w.pt") -> Path:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=FORMATS[request.param])
        return tmp_path / name

    return saved


def read(header: Header, name: str, *, cuts: tuple[int, ...] = ()) -> Tensor:
    """A tensor as float32, read in pieces."""
    info = header.tensors[name]
    out = torch.full((info.numel,), torch.nan)
    with open_files() as files:
        source, scratch = info.open(files), Scratch()
        bounds = [0, *sorted(c % (info.numel + 1) for c in cuts), info.numel]
        for start, stop in itertools.pairwise(bounds):
            source.read(start, stop, out[start:stop], scratch)
    return out.view(info.shape)


def check(path: Path, expected: dict[str, Tensor], cuts: tuple[int, ...] = ()) -> None:
    """The file holds exactly these tensors."""
    header = read_pickled(path)
    assert header.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        info = header.tensors[name]
        assert (DTYPES[info.dtype].torch, info.shape) == (str(tensor.dtype)[6:], tuple(tensor.shape)), name
        if not tensor.is_complex():
            wanted = tensor.detach().to(torch.float32).contiguous().view(torch.int32)
            assert torch.equal(read(header, name, cuts=cuts).view(torch.int32), wanted), name


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pickled(path)
    message = str(caught.value)
    assert len(message) < 700
    assert message.isprintable() or "\n" in message
    return message


# ---- what torch writes


def of_dtype(dtype: torch.dtype) -> Tensor:
    raw = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    if dtype is torch.bool:
        return raw % 2 == 0
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.randn(64).to(dtype)
    return raw.view(dtype) if dtype.itemsize == 1 else torch.arange(-9, 9).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: str, save: Callable[..., Path]) -> None:
    tensor = of_dtype(getattr(torch, DTYPES[dtype].torch))
    check(save({"x": tensor}), {"x": tensor})


def test_shapes_and_views(save: Callable[..., Path]) -> None:
    base = torch.randn(6, 8, 4)
    content = {
        "whole": base,
        "tied": base,
        "rows": base[2:4],
        "columns": base[:, 3:5],
        "transposed": base.transpose(0, 2),
        "steps": base[::2, ::3, 1::2],
        "diagonal": base[0].diagonal(),
        "expanded": base[0, 0].expand(5, 4),
        "scalar": base[1, 2, 3],
        "one": base[:1, :1, :1],
        "none": base[:, :0],
        "scalar of its own": torch.tensor(2.5),
        "nothing": torch.zeros(0),
        "parameter": torch.nn.Parameter(base[0].T.clone()),
        "frozen": torch.nn.Parameter(base[0], requires_grad=False),
        "buffer": torch.nn.Buffer(base[1]),
        "gradient": base.clone().requires_grad_(),
    }
    path = save(content)
    check(path, content, cuts=(1, 5, 30))
    assert torch.load(path, weights_only=True)["tied"].equal(base)


def test_views_are_copied_bit_by_bit(save: Callable[..., Path], tmp_path: Path) -> None:
    """Numbers that float32 has not, too: through a merge."""
    large = torch.tensor([[2**24 + 1, -(2**31)], [2**31 - 1, 5]], dtype=torch.int32)
    content = {
        "mask": torch.ones(6, 6).tril().bool()[:4, :4],
        "numbers": large.T,
        "fine": torch.tensor([[1 / 3, 2 / 3], [1e-300, 1e300]], dtype=torch.float64).T,
        "repeated": torch.tensor(3, dtype=torch.int64).expand(2, 3),
        "complex": torch.tensor([[1 + 2j, 3], [4j, 5]]).T,
        "weight": torch.randn(4, 4),
    }
    file = save(content)
    merge({"merge_method": "passthrough", "models": [{"model": str(file)}]}, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in content.items():
        assert merged[name].dtype == tensor.dtype
        assert torch.equal(merged[name], tensor), name


def test_tied_tensors_are_the_same_bytes(save: Callable[..., Path]) -> None:
    weight = torch.randn(4, 4)
    tensors = read_pickled(save({"a": weight, "b": weight})).tensors
    assert tensors["a"].offset == tensors["b"].offset


def test_attributes_of_parameters_are_ignored(save: Callable[..., Path]) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.mark = {"of": "its own"}  # type: ignore[attr-defined]
    check(save({"x": parameter}), {"x": parameter})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_view_of_any_storage(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    dtype = data.draw(
        st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int16, torch.uint16])
    )
    tensor = (torch.arange(int(np.prod(sizes))) - 7).view(sizes).to(torch.float32).to(dtype)
    for axis in range(len(sizes)):
        first = data.draw(st.integers(0, sizes[axis] - 1))
        tensor = tensor.movedim(axis, 0)[first :: data.draw(st.integers(1, 2))].movedim(0, axis)
    tensor = tensor.permute(*data.draw(st.permutations(range(len(sizes)))))
    buffer = io.BytesIO()
    torch.save({"x": tensor}, buffer, _use_new_zipfile_serialization=data.draw(st.booleans()))
    path = Path(tempfile.gettempdir()) / f"meldkit-{os.getpid()}.pt"
    path.write_bytes(buffer.getvalue())
    try:
        check(path, {"x": tensor}, cuts=tuple(data.draw(st.lists(st.integers(0, 600), max_size=4))))
    finally:
        path.unlink()


def test_without_checksums(tmp_path: Path) -> None:
    from torch.serialization import set_crc32_options

    weight = torch.randn(5)
    set_crc32_options(compute_crc32=False)
    try:
        torch.save({"x": weight}, tmp_path / "w.pt")
    finally:
        set_crc32_options(compute_crc32=True)
    check(tmp_path / "w.pt", {"x": weight})


def test_names_of_files_and_tensors_in_all_scripts(save: Callable[..., Path]) -> None:
    weights = {"größe.重み": torch.randn(2), "": torch.randn(1), "a b\n": torch.randn(1)}
    check(save(weights, "modèle 模型.pt"), weights)


def test_opening_reads_no_weights(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"x": torch.randn(100)})
    monkeypatch.setattr(os, "preadv", None)
    read_pickled(path)


def test_digest(save: Callable[..., Path]) -> None:
    def digest(content: object) -> str:
        return read_pickled(save(content)).digest

    # The same tensor, because a legacy file holds the address of each storage.
    x = torch.zeros(3)
    first = digest({"x": x})
    assert first == digest({"x": x})
    assert len({first, digest({"y": torch.zeros(3)}), digest({"x": torch.zeros(4)})}) == 3


# ---- what training programs save around the weights


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(OrderedDict(lin=torch.nn.Linear(3, 2), norm=torch.nn.BatchNorm1d(2)))


def trained() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the optimizer's state after a step."""
    model = module()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model.state_dict(), optimizer.state_dict()


def containers() -> dict[str, tuple[Any, dict[str, Tensor]]]:
    weights, optimizer = trained()
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}
    a, b = {"w": torch.randn(2)}, {"w": torch.randn(3), "v": {"w": torch.randn(1)}}
    lightning = {
        "epoch": 3,
        "global_step": 17,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "loops": {"fit_loop": {"state_dict": {}, "best": torch.tensor(1.0)}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer],
        "lr_schedulers": [{"last_epoch": 3}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "name": "net", "sizes": (1, 2)},
    }
    return {
        "plain": (weights, weights),
        "parallel": (parallel, weights),
        "compiled": (compiled, weights),
        "one key": ({"anything": weights}, weights),
        "nested": ({"state_dict": {"model": parallel}}, weights),
        "beside others": (
            {"model": weights, "optimizer": optimizer, "scaler": {"s": torch.ones(1)}},
            weights,
        ),
        "beside tensors": ({"state_dict": weights, "epoch": torch.tensor(3), "rng": torch.ones(9)}, weights),
        "average": ({"net": weights, "ema": {k: -v for k, v in weights.items()}}, weights),
        "lightning": (lightning, {f"model.{name}": tensor for name, tensor in weights.items()}),
        "two networks": ({"gen": a, "dis": b}, {"gen.w": a["w"], "dis.w": b["w"], "dis.v.w": b["v"]["w"]}),  # type: ignore[index]
        "numbered": ({"layers": {0: a, 1: a}}, {"0.w": a["w"], "1.w": a["w"]}),
    }


@pytest.mark.parametrize("kind", containers())
def test_containers(kind: str, save: Callable[..., Path]) -> None:
    content, expected = containers()[kind]
    check(save(content), expected)


def test_other_content_is_harmless(save: Callable[..., Path]) -> None:
    counts: defaultdict[str, list[int]] = defaultdict(list)
    counts["a"].append(1)
    other = {
        "numpy": np.arange(6.0).reshape(2, 3),
        "number": np.float64(2.5),
        "args": argparse.Namespace(lr=0.1, hidden=torch.randn(3)),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "where": Path("/somewhere"),
        "counts": counts,
        "tally": Counter("abc"),
        "queue": deque([1, 2], maxlen=3),
        "set": {1, "a", (1, 2)},
        "frozen": frozenset([1]),
        "complex": 1 + 2j,
        "bytes": b"\xff\0",
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "range": range(3),
        "big": 10**40,
    }
    weight = torch.randn(3)
    check(save({"state_dict": {"x": weight}, "other": other}), {"x": weight})


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.sampled_from([torch.zeros(1), 3, "text", None]),
        lambda inner: st.dictionaries(
            st.sampled_from(["a", "b", "model", "optimizer", "state_dict", 0, "module"]), inner, max_size=3
        ),
        max_leaves=8,
    )
)
def test_names_lead_to_the_tensors(content: Any) -> None:
    try:
        found = find_weights(content, Tensor)
    except ValueError:
        return
    tensors = found.of(content)
    assert tensors
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())
    for name, keys in found.keys.items():
        assert ".".join(map(str, keys)).endswith(name)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"epoch": 3},
        [torch.zeros(1)],
        torch.zeros(1),
        {"optimizer": {"state": {0: {"m": torch.zeros(1)}}}},
        {("a", 1): torch.zeros(1)},
    ],
)
def test_no_weights(content: object, save: Callable[..., Path]) -> None:
    assert "holds no weights: a mapping of names to tensors was looked for" in refusal(save(content))


def test_names_must_be_clear(save: Callable[..., Path]) -> None:
    one = torch.zeros(1)
    assert "has two tensors named 'a.b'" in refusal(save({"a.b": one, "a": {"b": one}, "c": one}))
    assert "which no safetensors file can hold" in refusal(save({"__metadata__": one}))
    assert "which is not Unicode text" in refusal(save({"\ud800": one}))


def test_mappings_without_end(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.checkpoint.pickled.state_dict as module

    monkeypatch.setattr(module, "_MAX_ENTRIES", 1000)
    inner: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(6):
        inner = {str(i): inner for i in range(20)} | {"w": torch.zeros(1)}
    assert "holds more entries than can be read" in refusal(save(inner))
    inside: dict[str, Any] = {"w": torch.zeros(1)}
    inside["again"] = inside
    assert "holds mappings nested too deeply" in refusal(save(inside))


# ---- model folders


def llama_bin(folder: Path, seed: int, *, shards: int = 1) -> Path:
    """A Llama as transformers before 4.35 stored it."""
    tiny.llama(folder, seed, layers=2)
    tensors = tiny.tensors(folder)
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    weight_map: dict[str, str] = {}
    for index in range(shards):
        part = dict(list(tensors.items())[index::shards])
        name = f"pytorch_model-{index + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, folder / name, _use_new_zipfile_serialization=index % 2 == 0)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def test_folders_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    llama_bin(Path("a"), 0)
    llama_bin(Path("b"), 1, shards=3)
    for name in ("a", "b"):
        tensors = LlamaForCausalLM.from_pretrained(name).state_dict()
        checkpoint = open_checkpoint(name, Path(name))
        assert checkpoint.keys() == tensors.keys()
    recipe = {
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
        "models": [{"model": "a"}, {"model": "b"}],
    }
    merge(recipe, "out")
    merged = LlamaForCausalLM.from_pretrained("out").state_dict()
    models = [LlamaForCausalLM.from_pretrained(name).state_dict() for name in ("a", "b")]
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (models[0][name] + models[1][name]) / 2)


def test_index_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    llama_bin(tmp_path / "m", 0, shards=2)
    index = tmp_path / "m" / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "../outside.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"places tensor 'lm_head.weight' in '../outside.bin'"):
        open_checkpoint("m", tmp_path / "m")


@pytest.mark.slow
def test_real_checkpoints(tmp_path: Path) -> None:
    """Pickled models as they were published, in a package from PyPI."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        tmp_path,
        "chgnet==0.4.2",
    ]
    subprocess.run(pip, check=True)
    (archive,) = tmp_path.glob("chgnet*")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            z.extractall(tmp_path)
    else:
        with tarfile.open(archive) as t:
            t.extractall(tmp_path, filter="data")
    paths = sorted(tmp_path.rglob("*.pth.tar"))
    assert len(paths) >= 3
    for path in paths:
        content = torch.load(path, weights_only=False, map_location="cpu")
        check(path, dict(content["model"]["state_dict"]))


# ---- programs


class Call:
    """Pickled, it calls something."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def zipped(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """An archive as torch writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"w/data/{key}", data)
        archive.writestr("w/version", "3\n")
    return path


def legacy(path: Path, pickled: bytes) -> Path:
    head = [pickle.dumps(o, protocol=2) for o in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*head, pickled, pickle.dumps([], protocol=2)]))
    return path


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, argument: bytes = b"U\x04true") -> bytes:
    """A program that calls a function by name."""
    return b"\x80\x02" + named(module, name) + argument + b"\x85R."


GETATTR = b"\x80\x02" + named("builtins", "getattr") + named("torch", "Tensor") + b"U\x08__base__\x86R."
NAMES = [
    *(("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("pty", "spawn")),
    *(("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__")),
    *(("__builtin__", "eval"), ("__builtin__", "open"), ("builtins", "globals"), ("builtins", "compile")),
    *(("builtins", "print"), ("builtins", "input"), ("builtins", "breakpoint"), ("builtins", "type")),
    *(("runpy", "_run_code"), ("importlib", "import_module"), ("pickle", "loads"), ("_pickle", "loads")),
    *(("torch", "load"), ("torch.serialization", "load"), ("torch.hub", "load"), ("torch.jit", "load")),
    *(("torch", "save"), ("torch.storage", "_load_from_bytes"), ("torch._utils", "os.system")),
    *(("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("shutil", "rmtree")),
    *(("webbrowser", "open"), ("socket", "socket"), ("ctypes", "CDLL"), ("operator", "attrgetter")),
    *(("functools", "partial"), ("types", "FunctionType"), ("codecs", "decode"), ("_codecs", "decode")),
    *(
        ("meldkit.checkpoint.pickled.unpickler", "Unpickler"),
        ("meldkit.checkpoint.pickled.unpickler", "View"),
    ),
    *(("meldkit.api", "merge"), ("__main__", "run"), ("", ""), ("torch", ""), ("torch.nn", "Linear")),
    *(("copyreg", "_reconstructor"), ("builtins", "object.__subclasses__"), ("collections", "namedtuple")),
]


_WATCHERS: list[list[str]] = []
_EVENTS = ("os.system", "subprocess.Popen", "exec", "socket.connect", "pickle.find_class")


@functools.cache
def _watch() -> None:
    """Once in a process: a hook stays to its end, is asked about everything, and lets other threads in."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if _WATCHERS and event in _EVENTS:
            for seen in _WATCHERS:
                seen.append(f"{event} {arguments}")

    sys.addaudithook(hook)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the process imports, opens or starts while a file is read; the file itself left out."""
    _watch()
    seen: list[str] = []
    _WATCHERS.append(seen)
    monkeypatch.setattr(os, "system", lambda command: seen.append(command))
    monkeypatch.setattr("builtins.eval", lambda text: seen.append(text))
    monkeypatch.setattr(torch, "load", lambda *_, **__: seen.append("torch.load"))
    yield seen  # type: ignore[misc]
    _WATCHERS.remove(seen)


@pytest.mark.parametrize("wrap", [zipped, legacy])
@pytest.mark.parametrize(("module", "name"), NAMES)
def test_names_that_are_refused(
    module: str, name: str, wrap: Callable[[Path, bytes], Path], tmp_path: Path, watched: list[str]
) -> None:
    loaded = set(sys.modules)
    message = refusal(wrap(tmp_path / "w.pt", call(module, name)))
    full = f"{module}.{name}"
    assert message == (
        f"{tmp_path}/w.pt wants to load {full!r}, which is no tensor: refused, nothing of it was run\n"
        "  use it only if you trust its origin: load it with its own program and save the state_dict"
    )
    assert not watched
    assert not {
        m for m in set(sys.modules) - loaded if m.startswith(("pty", "runpy", "webbrowser", "antigravity"))
    }


def programs() -> dict[str, bytes]:
    """Programs that hide what they do, or that work on what they may have."""
    t = b"\x80\x02"
    weights = pickle.dumps({"a": 1}, protocol=2)[2:-1]
    storage = (
        t + b"((X\x07\0\0\0storage" + named("torch", "FloatStorage") + b"X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
    )
    function = named("torch._utils", "_rebuild_tensor_v2")
    return {
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        "inst": t + b"(U\x04trueios\nsystem\n.",
        "obj": t + b"(" + named("os", "system") + b"U\x04trueo.",
        "newobj": t + named("os", "system") + b"U\x04true\x85\x81.",
        "inside a dict": t + b"}U\x01w" + call("os", "system")[2:-1] + b"s.",
        "as a key": t + b"}" + call("os", "system")[2:-1] + b"U\x01ws.",
        "nested": t + function + b"(" + call("os", "system")[2:-1] + b"tR.",
        "of type": t
        + named("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + named("os", "system")
        + named("torch", "Tensor")
        + b"U\x04true\x85NtR.",
        "of type, a known class": t
        + named("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + named("builtins", "list")
        + named("torch", "Tensor")
        + b")NtR.",
        "state of a function": t + function + b"}U\x0c__defaults__NsN\x86b.",
        "state of a class": t + named("collections", "OrderedDict") + b"}U\x08__init__K\x01sb.",
        "state of a type": t + named("torch", "FloatStorage") + b"}U\x04nameU\rDoubleStoragesb.",
        "extension": t + b"\x82\x01.",
        "extension 2": t + b"\x83\x01\x01.",
        "extension 4": t + b"\x84\x01\x01\x01\x01.",
        "persistent text": b"P0\n.",
        "buffer": b"\x80\x05\x97.",
        "huge memo": t + b"Nr\xff\xff\xff\x7f.",
        "huge array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b".",
        "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
        "huge number": t + b"\x8b" + struct.pack("<i", 1 << 30) + b".",
        "deep list": t + b"]" * 60_000 + b"a" * 59_999 + b".",
        "deep tuple": t + b")" + b"\x85" * 60_000 + b".",
        "deep key": t + b"}" + b")" + b"\x85" * 150_000 + b"Ns.",
        "endless key": t + b"})" + b"2\x86" * 60 + b"Ns.",
        "endless key in a set": b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
        "endless key of an ordered mapping": t
        + named("collections", "OrderedDict")
        + b"](]"
        + b")"
        + b"2\x86" * 60
        + b"aNaa\x85R.",
        "frozen set": b"\x80\x04()" + b"2\x86" * 60 + b"\x91.",
        "nothing": t + b".",
        "cut off": t + weights,
        "unknown instruction": t + b"\xee.",
        "protocol": b"\x80\x63.",
        "a dict in itself": t + b"}q\0U\x01ah\0s.",
        "not a storage": t + b"N\x85Q.",
        "reference to a number": t + b"K\x01Q.",
        "storage of a class": storage.replace(b"FloatStorage", b"Tensor") + b".",
        "append to a tensor type": t + named("torch", "Tensor") + b"K\x01a.",
        "numbers as functions": t + b"K\x05)R.",
        "text as a class": t + b"U\x03abc)\x81.",
    }


#: What is said about some of them, after "is damaged".
SAID = {
    "cut off": ": the pickle in it ends too early",
    "nothing": ": the pickle in it makes no sense",
    "unknown instruction": ": the pickle in it makes no sense",
    "text as a class": ": the pickle in it makes no sense",
    "reference to a number": ", or not written by torch: it describes a reference to something else than a "
    "storage",
    "endless key": ", or not written by torch: it describes a key that is not simple",
}


@pytest.mark.parametrize("program", SAID)
def test_damage_is_put_in_words(program: str, tmp_path: Path) -> None:
    assert refusal(zipped(tmp_path / "w.pt", programs()[program])) == (
        f"{tmp_path}/w.pt is damaged{SAID[program]}\n  download the file again, or check how it was written"
    )


@pytest.mark.parametrize("wrap", [zipped, legacy])
@pytest.mark.parametrize("program", programs())
def test_programs_end_in_one_message(
    program: str, wrap: Callable[[Path, bytes], Path], tmp_path: Path, watched: list[str]
) -> None:
    message = refusal(wrap(tmp_path / "w.pt", programs()[program]))
    assert message.startswith(f"{tmp_path}/w.pt ")
    assert not watched


def test_nothing_of_one_file_changes_how_the_next_is_read(tmp_path: Path) -> None:
    """Attributes could otherwise be set on what stands for functions and types."""
    weights = {"x": torch.randn(3), "y": torch.randn(2).half()}
    torch.save(weights, tmp_path / "good.pt")
    check(tmp_path / "good.pt", weights)
    for program in programs().values():
        refusal(zipped(tmp_path / "w.pt", program))
    check(tmp_path / "good.pt", weights)


def test_pickled_objects_of_all_sorts(tmp_path: Path, watched: list[str]) -> None:
    for content in (
        Call(os.getcwd),
        {"x": Call(print, "hello")},
        {"x": torch.zeros(1), "y": Call(exec, "1")},
        module(),
        {"model": module(), "state_dict": {"x": torch.zeros(1)}},
    ):
        torch.save(content, tmp_path / "w.pt")
        refusal(tmp_path / "w.pt")
    assert not watched


def test_kinds_of_tensors_that_are_not_read(save: Callable[..., Path]) -> None:
    kinds = {
        "torch._utils._rebuild_sparse_tensor": torch.zeros(1).to_sparse(),
        "torch._utils._rebuild_meta_tensor_no_storage": torch.zeros(2, device="meta"),
        "torch.ComplexDoubleStorage": torch.zeros(1, dtype=torch.complex128),
    }
    for name, tensor in kinds.items():
        path = save({"x": tensor})
        assert refusal(path) == (
            f"not supported: {path} has tensors of a kind that is not read: {name!r}\n"
            "  make ordinary tensors of them and save them again"
        )


def tensor_program(**changes: object) -> bytes:
    """A pickle of one tensor, in which numbers can lie."""
    fields: dict[str, object] = {
        "key": "0",
        "numel": 4,
        "offset": 0,
        "shape": (2, 2),
        "stride": (2, 1),
    } | changes

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            if isinstance(obj, Storage):
                return ("storage", torch.FloatStorage, fields["key"], "cpu", fields["numel"], *extra)
            return None

        def reducer_override(self, obj: object) -> Any:
            if isinstance(obj, Call):
                return obj.__reduce__()
            return NotImplemented

    extra = (fields["view"],) if "view" in fields else ()
    rebuild = torch._utils._rebuild_tensor_v2  # type: ignore[attr-defined]
    tensor = Call(
        rebuild, Storage(), fields["offset"], fields["shape"], fields["stride"], False, OrderedDict()
    )
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"x": tensor})
    return buffer.getvalue()


def test_the_program_that_lies_below_is_sound(tmp_path: Path) -> None:
    values = torch.randn(2, 2)
    path = zipped(tmp_path / "w.pt", tensor_program(), {"0": values.numpy().tobytes()})
    check(path, {"x": values})


@pytest.mark.parametrize(
    "changes",
    [
        {"numel": -1},
        {"numel": 2**70},
        {"numel": True},
        {"numel": "4"},
        {"numel": 5},
        {"key": "1"},
        {"key": 0},
        {"key": "../0"},
        {"offset": -1},
        {"offset": 1},
        {"offset": 2**63},
        {"offset": 0.5},
        {"shape": (2, 3)},
        {"shape": (2, -2)},
        {"shape": (2, "2")},
        {"shape": 4},
        {"shape": (2**40, 2**40)},
        {"shape": (2**40, 2**40), "stride": (0, 0)},
        {"shape": (1,) * 100_000, "stride": (1,) * 100_000},
        {"stride": (3, 1)},
        {"stride": (-2, 1)},
        {"stride": (2,)},
        {"stride": None},
        {"view": ("1", 0, 4)},
    ],
    ids=str,
)
def test_tensors_that_lie(changes: dict[str, object], tmp_path: Path) -> None:
    message = refusal(zipped(tmp_path / "w.pt", tensor_program(**changes), {"0": bytes(16)}))
    assert message.startswith(f"{tmp_path}/w.pt ")
    assert " is damaged, or not written by torch: it describes " in message or " bytes that 'x' is" in message


@functools.cache
def sound_files() -> list[bytes]:
    """A file in each format."""
    content = {"state_dict": {"a": torch.arange(5.0), "b": torch.arange(6.0).view(2, 3).T}, "epoch": 1}
    buffers = [io.BytesIO(), io.BytesIO()]
    for new, buffer in enumerate(buffers):
        torch.save(content, buffer, _use_new_zipfile_serialization=bool(new))
    return [buffer.getvalue() for buffer in buffers]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 1),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
def test_damaged_files_are_refused_or_read(
    kind: int, changes: list[tuple[float, int]], length: float
) -> None:
    """Whatever bytes change, the outcome is a message or tensors that lie inside the file."""
    raw = bytearray(sound_files()[kind])
    for position, value in changes:
        raw[int(position * len(raw))] = value
    if length > 0.5:
        raw = raw[: int(length * len(raw))]
    path = Path(tempfile.gettempdir()) / f"meldkit-{os.getpid()}.pt"
    path.write_bytes(raw)
    try:
        header = read_pickled(path)
        for name, info in header.tensors.items():
            assert info.offset + info.nbytes <= len(raw)
            read(header, name)
    except MeldError:
        pass
    finally:
        path.unlink()


# ---- archives and files


def rewritten(path: Path, change: Callable[[zipfile.ZipFile, str, bytes], None]) -> Path:
    """The archive once more, each member written by `change`."""
    with zipfile.ZipFile(path) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members:
            change(new, name, data)
    return path


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.randn(50), "y": torch.randn(3)}, "w.pt")
    return Path("w.pt")


def test_compressed_members(good: Path) -> None:
    rewritten(
        good, lambda z, name, data: z.writestr(name, data, zipfile.ZIP_DEFLATED if "/data/" in name else 0)
    )
    assert refusal(good).startswith(
        "w.pt has 'w/data/0' compressed or encrypted, which torch.save never does"
    )


def test_bomb(good: Path) -> None:
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + b"0" * 50_000_000)
    assert refusal(good).startswith("w.pt has 'w/data.pkl' compressed or encrypted")


def test_member_twice(good: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(good, "a") as archive:
        archive.writestr("w/data/0", bytes(200))
    assert refusal(good).startswith("w.pt is a damaged zip archive: it has two members of the same name")


def test_no_pickle_and_no_storage(good: Path) -> None:
    rewritten(good, lambda z, name, data: None if name.endswith("data.pkl") else z.writestr(name, data))
    assert refusal(good).startswith("w.pt is a zip archive without data.pkl")
    torch.save({"x": torch.randn(50)}, good)
    rewritten(good, lambda z, name, data: None if name.endswith("data/0") else z.writestr(name, data))
    assert refusal(good).startswith("w.pt holds none of the 200 bytes that 'x' is part of")
    torch.save({"x": torch.randn(50)}, good)
    rewritten(good, lambda z, name, data: z.writestr(name, data[:90] if name.endswith("data/0") else data))
    assert refusal(good).startswith("w.pt holds 90 of the 200 bytes that 'x' is part of")


def test_local_headers_that_lie(good: Path) -> None:
    with zipfile.ZipFile(good) as archive:
        info = archive.getinfo("w/data/0")
    raw = good.read_bytes()
    for place, value, message in (
        (8, struct.pack("<H", 8), "its table and its contents differ about 'w/data/0'"),
        (26, struct.pack("<H", 9), "its table and its contents differ about 'w/data/0'"),
        (30, b"x", "its table and its contents differ about 'w/data/0'"),
        (28, struct.pack("<H", 65535), "'w/data/0' reaches beyond its end"),
        (0, b"XX", f"no member at byte {info.header_offset}"),
    ):
        at = info.header_offset + place
        good.write_bytes(raw[:at] + value + raw[at + len(value) :])
        assert f"w.pt is a damaged zip archive: {message}" in refusal(good)


def test_truncated_archive(good: Path) -> None:
    raw = good.read_bytes()
    for length in (5, len(raw) // 2, len(raw) - 1):
        good.write_bytes(raw[:length])
        assert refusal(good) == (
            "w.pt is a damaged zip archive: its table of contents cannot be read\n"
            "  download the file again, or check how it was written"
        )


def test_truncated_legacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.randn(50)}, "w.pt", _use_new_zipfile_serialization=False)
    raw = Path("w.pt").read_bytes()
    for length in range(1, len(raw), 7):
        Path("w.pt").write_bytes(raw[:length])
        refusal(Path("w.pt"))
    Path("w.pt").write_bytes(raw[:-1])
    assert refusal(Path("w.pt")).startswith("w.pt ends early or lies about the tensors it holds, at byte ")


def test_big_endian(good: Path) -> None:
    rewritten(good, lambda z, name, data: z.writestr(name, b"big" if name.endswith("byteorder") else data))
    assert refusal(good).startswith("not supported: w.pt holds big-endian numbers")
    head = [pickle.dumps(o, protocol=2) for o in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False})]
    good.write_bytes(b"".join(head))
    assert refusal(good).startswith("not supported: w.pt holds big-endian numbers")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(good: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), good)
    assert refusal(good) == (
        "w.pt is a TorchScript program, not weights\n  save the model's state_dict with torch.save"
    )


def test_other_formats(good: Path) -> None:
    good.write_bytes(b"")
    assert refusal(good).startswith("w.pt is empty")
    good.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert refusal(good).startswith("w.pt is not a file of torch.save: neither a zip archive nor a pickle")
    with tarfile.open(good, "w") as archive:
        archive.add(__file__, "storages")
    assert refusal(good).startswith(
        "not supported: w.pt is a tar archive, as torch wrote before version 0.1.10"
    )
    good.write_bytes(pickle.dumps({"x": [1.0]}))
    assert refusal(good).startswith("w.pt is a pickle, but not one of torch.save")
    with zipfile.ZipFile(good, "w") as archive:
        archive.writestr("a.txt", "hello")
    assert refusal(good).startswith("w.pt is a zip archive without data.pkl")


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("w.pt")).startswith("cannot read w.pt: No such file or directory")
    Path("w.pt").symlink_to("v.pt")
    Path("v.pt").symlink_to("w.pt")
    assert refusal(Path("w.pt")).startswith("cannot read w.pt: Too many levels of symbolic links")
    Path("d.pt").mkdir()
    os.mkfifo("f.pt")
    for name in ("d.pt", "f.pt"):
        assert refusal(Path(name)).startswith(f"{name} is not a file")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    torch.save({"x": torch.zeros(1)}, "p.pt")
    monkeypatch.setattr(Path, "open", denied)
    assert refusal(Path("p.pt")).startswith("cannot read p.pt: Permission denied")


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    zipped(Path("w.pt"), call("os", "system"))
    Path("recipe.yml").write_text("merge_method: linear\nmodels: [{model: w.pt}]\nparameters: {weight: 1}\n")
    done = command.run(capsys, "plan", "recipe.yml")
    assert done.status == 3
    assert done.err.startswith("error: w.pt wants to load 'os.system', which is no tensor: refused")
    assert "Traceback" not in done.err
