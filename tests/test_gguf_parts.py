"""Models that are split into several GGUF files, as the gguf package writes them."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

import tiny
from gguf_files import LLAMA_KEYS, all_values, llama_tensors, write_gguf
from meldkit.api import merge
from meldkit.checkpoint import open_checkpoint
from meldkit.checkpoint.gguf import part_names, read_gguf
from meldkit.errors import CheckpointError

KEYS = LLAMA_KEYS | {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", *(f"<{n}>" for n in range(3, 32))],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "whole.gguf", "llama", KEYS, llama_tensors())


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "split"
    folder.mkdir()
    write_gguf(folder / "m.gguf", "llama", KEYS, llama_tensors(), each=4)
    return sorted(folder.iterdir())


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


def test_any_part_stands_for_all(whole: Path, parts: list[Path]) -> None:
    assert [path.name for path in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    expected, config = all_values(whole), read_gguf(whole).config
    digests: set[str] = set()
    for part in parts:
        header = read_gguf(part)
        assert {info.file for info in header.tensors.values()} == set(parts)
        assert header.config == config
        digests.add(header.digest)
        found = all_values(part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(digests) == 1


@pytest.mark.parametrize("named", ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf", ""])
def test_a_merge_reads_all_parts(named: str, whole: Path, parts: list[Path], tmp_path: Path) -> None:
    for name, path in (("one", whole), ("three", parts[0].parent / named)):
        merge({"merge_method": "passthrough", "models": [{"model": str(path)}]}, tmp_path / name)
    one, three = tiny.tensors(tmp_path / "one"), tiny.tensors(tmp_path / "three")
    assert one.keys() == three.keys()
    assert all(torch.equal(one[name], three[name]) for name in one)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        first, second = (json.loads((tmp_path / m / name).read_text()) for m in ("one", "three"))
        assert first == second


def test_fingerprint_follows_every_part(parts: list[Path]) -> None:
    seen = {open_checkpoint("m", parts[0]).fingerprint}
    for part in parts:
        with part.open("ab") as f:
            f.write(bytes(32))
        seen.add(open_checkpoint("m", parts[0]).fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize(("gone", "named"), [((0,), 1), ((1,), 0), ((2,), 0), ((0, 1), 2)])
def test_missing_parts(gone: tuple[int, ...], named: int, parts: list[Path]) -> None:
    for n in gone:
        parts[n].unlink()
    verb = "is" if len(gone) == 1 else "are"
    names = ", ".join(parts[n].name for n in gone)
    expected = (
        f"{parts[named]} is one of 3 parts of a model, of which {len(gone)} {verb} not in "
        f"{parts[0].parent}: {names}"
    )
    assert refusal(parts[named]) == expected
    with pytest.raises(CheckpointError, match="is one of 3 parts of a model"):
        open_checkpoint("m", parts[0].parent)


def test_many_missing_parts_are_counted(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m-00002-of-00009.gguf", "llama", KEYS | {"split.count": 9}, llama_tensors())
    assert refusal(path).endswith(
        "m-00001-of-00009.gguf, m-00003-of-00009.gguf, m-00004-of-00009.gguf and 5 more"
    )


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00002.gguf", "m-00004-of-00003.gguf"])
def test_a_part_under_another_name(name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / name, "llama", KEYS | {"split.count": 3}, llama_tensors())
    assert refusal(path) == (f"{path} says that it is one of 3 parts of a model, but is not named as a part")


@pytest.mark.parametrize("count", ["three", [3], -1, 2.0**40])
def test_a_count_that_makes_no_sense(count: object, tmp_path: Path) -> None:
    keys = KEYS | {"split.count": count if count != -1 else 2**32 - 1}
    path = write_gguf(tmp_path / "m-00001-of-00003.gguf", "llama", keys, llama_tensors())
    assert "but is not named as a part" in refusal(path)


def test_a_part_in_the_place_of_another(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])
    assert "says that it is part 1 of 3, counted from 0, not part 2 of 3" in refusal(parts[0])


def test_the_same_tensors_twice(parts: list[Path]) -> None:
    number = parts[1].read_bytes()
    old, new = (b"split.no" + struct.pack("<IH", 2, n) for n in (1, 2))
    assert number.count(old) == 1
    parts[2].write_bytes(number.replace(old, new))
    message = refusal(parts[0])
    assert "m-00003-of-00003.gguf has the tensor " in message
    assert message.endswith(", as m-00002-of-00003.gguf has")


def test_fewer_tensors_than_it_says(parts: list[Path]) -> None:
    raw = parts[0].read_bytes()
    old, new = (b"split.tensors.count" + struct.pack("<Ii", 5, n) for n in (11, 12))
    assert raw.count(old) == 1
    parts[0].write_bytes(raw.replace(old, new))
    assert "says that all parts have 12 tensors, but they have 11" in refusal(parts[1])


def test_a_damaged_part_is_named(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-64])
    assert f"{parts[1]} is truncated" in refusal(parts[0])


def test_a_folder_of_two_models(parts: list[Path], whole: Path) -> None:
    shutil.copy(whole, parts[0].parent)
    with pytest.raises(CheckpointError, match="has 4 GGUF files"):
        open_checkpoint("m", parts[0].parent)


def test_what_a_model_sees_with_is_no_second_model(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(whole, folder / "model-Q8_0.gguf")
    alone = open_checkpoint("m", folder)
    shutil.copy(whole, folder / "mmproj-model-f16.gguf")
    opened = open_checkpoint("m", folder)
    assert (opened.fingerprint, list(opened)) == (alone.fingerprint, list(alone))
    assert alone.notes == ()
    assert opened.notes == (
        "model 'm': mmproj-model-f16.gguf, which makes its input of images or sounds, is left out",
    )
    shutil.copy(whole, folder / "model-Q4_0.gguf")
    with pytest.raises(CheckpointError, match=r"has 2 GGUF files: model-Q4_0\.gguf, model-Q8_0\.gguf"):
        open_checkpoint("m", folder)


def test_names_of_parts() -> None:
    assert part_names("a/m-00002-of-00002.gguf") == ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"]
    for name in ("m.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-1-of-2.gguf"):
        assert part_names(name) == [name]
