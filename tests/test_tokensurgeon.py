"""Tokenizers of other models: shared tokens keep their rows, others are what the definitions say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import tiny
import word_tokenizers as words
from command import run
from meldkit.errors import MismatchError, NotSupportedError, RecipeError
from meldkit.kernels import library, pursuit
from meldkit.tools.transplant import names
from meldkit.tools.transplant import pursuit as pursuing
from meldkit.tools.transplant.approximate import METHODS
from meldkit.tools.transplant.plan import plan_transplant
from meldkit.tools.transplant.rows import turned
from meldkit.tools.transplant.tokens import Vocabularies, untrained
from meldkit.tools.transplant.wanted import Transplant
from meldkit.vocab import Tokenizer, byte_tokens, meanings, pieces
from real_tokenizers import SAMPLES, tiny_model

LIBRARY: Any = transformers
ROOT = Path(__file__).parent.parent
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DONOR_SIZE = 7
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


# ---- orthogonal matching pursuit


def obvious(x: np.ndarray, atoms: np.ndarray, k: int) -> tuple[list[int], np.ndarray]:
    """Orthogonal matching pursuit as it is defined, in float64."""
    chosen: list[int] = []
    rest, weights = x, np.zeros(0)
    for _ in range(k):
        scores = np.abs(atoms @ rest)
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        weights = np.linalg.lstsq(atoms[chosen].T, x)[0]
        rest = x - weights @ atoms[chosen]
    return chosen, weights


def compiled(targets: Tensor, atoms: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    return pursuing.pursue(targets, atoms, k)


def in_numpy(targets: Tensor, atoms: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "FUNCTIONS", None)
        return pursuing.pursue(targets, atoms, k)


def in_step(targets: Tensor, atoms: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pursuing, "_MOST_PRODUCTS", 0)
        return pursuing.pursue(targets, atoms, k, batch=7)


WAYS = (compiled, in_numpy, in_step)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("count", "columns", "k"), [(60, 16, 8), (1500, 40, 13), (5, 16, 5), (3, 2, 1)])
def test_pursuit_is_the_obvious_one(way: Callable[..., Any], count: int, columns: int, k: int) -> None:
    generator = torch.Generator().manual_seed(count)
    atoms = torch.randn(count, columns, generator=generator) + 0.5 * torch.randn(columns, generator=generator)
    atoms *= 0.5 + torch.rand(count, 1, generator=generator)
    targets = torch.randn(20, columns, generator=generator)
    rows, weights = way(targets, atoms, k)
    for x, own, by in zip(targets.double().numpy(), rows, weights, strict=True):
        chosen, expected = obvious(x, atoms.double().numpy(), k)
        assert own.tolist() == chosen
        np.testing.assert_allclose(by, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_pursuit_by_hand(way: Callable[..., Any]) -> None:
    rows, weights = way(torch.tensor([[2.0, 3, 0]]), torch.eye(3), 2)
    assert (rows.tolist(), weights.tolist()) == ([[1, 0]], [[3, 2]])


@pytest.mark.parametrize("way", WAYS)
def test_pursuit_ends_where_nothing_is_left(way: Callable[..., Any]) -> None:
    """Of an atom, of nothing, and among atoms that are the same."""
    atoms = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 2, 0], [1, 2, 0]])
    rows, weights = way(torch.tensor([[3.0, 0, 0], [0, 0, 0], [0, -1, 0], [0, 0, 1]]), atoms, 4)
    sums = (torch.from_numpy(weights)[:, :, None] * atoms[torch.from_numpy(rows).long()]).sum(1)
    expected = torch.tensor([[3.0, 0, 0], [0, 0, 0], [0, -1, 0], [0, 0, 0]])
    torch.testing.assert_close(sums, expected, atol=1e-6, rtol=0)
    assert np.isfinite(weights).all()
    assert np.abs(weights).max() < 10


def test_pursuit_of_many_threads_is_that_of_one() -> None:
    generator = torch.Generator().manual_seed(3)
    atoms, targets = torch.randn(300, 24, generator=generator), torch.randn(500, 24, generator=generator)
    together = pursuing.pursue(targets, atoms, 6)
    gram = (atoms @ atoms.T).numpy()
    for start in range(0, 500, 64):
        part = pursuit.pursue(gram, (targets[start : start + 64] @ atoms.T).numpy(), 6)
        np.testing.assert_array_equal(together[0][start : start + 64], part[0])
        np.testing.assert_array_equal(together[1][start : start + 64], part[1].astype(np.float32))


# ---- which tokens match


def byte_level(tokens: Sequence[str], special: Sequence[str] = (), merges: Sequence[str] = ()) -> Tokenizer:
    return Tokenizer("bytes", _content(tokens, special, BYTE_LEVEL, merges))


def sentencepiece(
    tokens: Sequence[str], special: Sequence[str] = (), merges: Sequence[str] = ()
) -> Tokenizer:
    decoder = {
        "type": "Sequence",
        "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}],
    }
    return Tokenizer("pieces", _content(tokens, special, decoder, merges))


def _content(
    tokens: Sequence[str], special: Sequence[str], decoder: Mapping[str, Any], merges: Sequence[str]
) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": len(tokens) + i, "content": t, **flags} for i, t in enumerate(special)],
        "decoder": decoder,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": list(merges)},
    }


def test_meanings() -> None:
    assert meanings(byte_level(["Ġthe", "Ã©", "Ċ"], ["<s>"])) == {
        "Ġthe": "Ġthe",
        "Ã©": "Ã©",
        "Ċ": "Ċ",
        "<s>": "\0<s>",
    }
    pieces_ = meanings(sentencepiece(["▁the", "é", "<0x0A>", "a▁b"], ["<s>"]))
    assert pieces_ == {"▁the": "Ġthe", "é": "Ã©", "<0x0A>": "\0<0x0A>", "a▁b": "aĠb", "<s>": "\0<s>"}
    assert byte_tokens(sentencepiece(["<0x0A>", "<0xE9>"])) == {"Ċ": "<0x0A>", "é": "<0xE9>"}
    assert byte_tokens(byte_level(["<0x0A>"])) == {}
    assert meanings(byte_level([])) == {}


def matched(model: Tokenizer, donor: Tokenizer, roles: Any = ({}, {}), **how: bool) -> dict[str, Any]:
    found = Vocabularies(model, donor, roles).match((99, 99), **how)
    ours, theirs = ({n: t for t, n in side.tokens.items()} for side in (model, donor))
    kinds = {
        kind: {theirs[a]: ours[b] for a, b in getattr(found, kind).items()}
        for kind in ("exact", "byte", "prefix")
    }
    return {k: v for k, v in kinds.items() if v} | {"missing": [theirs[n] for n in found.missing]}


def test_tokens_match_by_what_they_stand_for() -> None:
    ours = byte_level(["a", "Ġthe", "Ã©t", "Ċ"], ["<|begin|>", "<|end|>"])
    theirs = sentencepiece(["▁the", "ét", "▁then", "<0x0A>", "ab"], ["<s>", "</s>", "<|end|>"])
    roles = ({"bos": "<|begin|>", "eos": "<|end|>"}, {"bos": "<s>", "eos": "</s>"})
    same = {"▁the": "Ġthe", "ét": "Ã©t", "<s>": "<|begin|>", "</s>": "<|end|>", "<|end|>": "<|end|>"}
    assert matched(ours, theirs, roles) == {"exact": same, "missing": ["▁then", "<0x0A>", "ab"]}
    found = matched(ours, theirs, roles, byte=True)
    assert (found["byte"], found["missing"]) == ({"<0x0A>": "Ċ"}, ["▁then", "ab"])
    found = matched(ours, theirs, roles, prefix=True)
    assert (found["prefix"], found["missing"]) == ({"▁then": "Ġthe", "ab": "a"}, ["<0x0A>"])
    # And the other way round.
    found = matched(theirs, ours, byte=True)
    assert (found["byte"], found["missing"]) == ({"Ċ": "<0x0A>"}, ["a", "<|begin|>"])


def test_prefixes_end_between_characters() -> None:
    """Ã is the first byte of é, and no prefix of it; a space alone says nothing."""
    ours = byte_level(["Ã", "Ġ", "a"])
    assert matched(ours, byte_level(["Ã©", "Ġb", "aÃ©"]), prefix=True) == {
        "prefix": {"aÃ©": "a"},
        "missing": ["Ã©", "Ġb"],
    }


def test_tokens_without_a_row_match_nothing() -> None:
    both = byte_level(["a", "b", "c"])
    found = Vocabularies(both, both, ({}, {})).match((2, 3))
    assert (found.exact, found.missing) == ({0: 0, 1: 1}, [2])
    # What is shared needs no row of the donor's.
    found = Vocabularies(both, both, ({}, {})).match((3, 2))
    assert (found.exact, found.missing) == ({0: 0, 1: 1, 2: 2}, [])
    other = byte_level(["x", "y", "z"])
    assert Vocabularies(both, other, ({}, {})).match((3, 2)).missing == [0, 1]


def test_pieces() -> None:
    ours = sentencepiece(
        ["▁", "t", "h", "e", "th", "the", "▁the", "<0xC3>", "<0xA9>"], merges=["t h", "th e", "▁ the"]
    )
    texts = ["Ġthe", "the", "Ã", "Ã©", "\0th", "\0<0xC3>"]
    assert pieces(ours, texts) == [[6], [5], [7], [7, 8], [4], [7]]
    assert pieces(byte_level(["Ġ", "t", "h", "th"], merges=["t h"]), ["Ġth", "ht"]) == [[0, 3], [2, 1]]


def test_token_for_several_things_is_what_ends_a_text() -> None:
    """GPT-2's <|endoftext|> begins, ends, and stands for what is unknown."""
    ours, theirs = byte_level(["a"], ["<unk>", "<s>", "</s>"]), byte_level(["a"], ["<|endoftext|>"])
    roles = (
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"),
    )
    assert matched(ours, theirs, roles)["exact"]["<|endoftext|>"] == "</s>"


def test_what_is_special_in_one_only_is_the_same_token() -> None:
    ours, theirs = byte_level(["<tool>", "a"], ["<|fim|>"]), byte_level(["a"], ["<tool>", "<|fim|>"])
    assert theirs.content is not None
    theirs.content["added_tokens"][1]["special"] = False
    assert matched(ours, theirs) == {
        "exact": {"a": "a", "<tool>": "<tool>", "<|fim|>": "<|fim|>"},
        "missing": [],
    }


def test_untrained() -> None:
    """Rows of no token, tokens that are called unused, rows like these, and short ones."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(600, 64, generator=generator)
    spare = torch.randn(64, generator=generator)
    for row in (5, 6, 7, 599):
        table[row] = spare + 0.01 * torch.randn(64, generator=generator)
    table[9] *= 0.01
    names = [f"t{i}" for i in range(599)]
    names[5] = "<unused5>"
    names[50], names[51] = "Ġreserved", "unused"  # words like others
    tokenizer = byte_level(names)
    found = untrained(tokenizer, 600, lambda: table.split(250), None)
    assert np.flatnonzero(found).tolist() == [5, 6, 7, 599]
    head = torch.randn(600, 64, generator=generator)
    found = np.flatnonzero(untrained(tokenizer, 600, lambda: [table], lambda: [head])).tolist()
    assert {5, 6, 7, 9, 599} <= set(found)
    assert len(found) < 20


# ---- whole models


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 12 words; and a donor that shares 9 of them, in another order and of another size."""
    monkeypatch.chdir(tmp_path)
    ours = {"<unk>": 0, **{f"w{i}": i for i in range(1, 11)}}
    theirs = {"<unk>": 0, "new1": 1, **{f"w{i}": 12 - i for i in range(3, 11)}, "new2": 10, "new3": 11}
    words.model(Path("model"), words.content(ours, ["<s>"]), settings={"bos_token": "<s>"})
    donor = words.content(theirs, ["<begin>"])
    tiny.decoder(
        Path("donor"), 5, hidden=DONOR_SIZE, layers=1, vocab=13, vocab_size=13, tie_word_embeddings=False
    )
    Path("donor/tokenizer.json").write_text(json.dumps(donor))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<begin>"}
    Path("donor/tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads(Path("donor/config.json").read_text()) | {"bos_token_id": 12, "eos_token_id": 3}
    Path("donor/config.json").write_text(json.dumps(config))


def operate(capsys: pytest.CaptureFixture[str], *options: str, out: str = "out") -> dict[str, Any]:
    done = run(capsys, "tokensurgeon", "model", "donor", out, "--json", "--random-seed", "7", *options)
    assert done.status == 0, done.err
    return json.loads(done.out)


SHARED = ["<unk>", *(f"w{i}" for i in range(3, 11))]
NEW = ["new1", "new2", "new3"]


def rows(folder: str, name: str, tokens: Sequence[str]) -> Tensor:
    numbers = words.numbers(Path(folder))
    return tiny.tensors(Path(folder))[name][[numbers[token] for token in tokens]]


@pytest.mark.usefixtures("models")
def test_shared_tokens_keep_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    found = operate(capsys, "-k", "3")
    assert [(t["name"], t["exact"], t["made"]) for t in found["tables"]] == [
        (EMBEDDING, 10, 3),
        (HEAD, 10, 3),
    ]
    for name in (EMBEDDING, HEAD):
        assert torch.equal(rows("out", name, SHARED), rows("model", name, SHARED))
        # What is for the same is the same token.
        assert torch.equal(rows("out", name, ["<begin>"]), rows("model", name, ["<s>"]))
    config = json.loads(Path("out/config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"]) == (13, 12)
    assert words.numbers(Path("out")) == words.numbers(Path("donor"))
    for name, tensor in tiny.tensors(Path("model")).items():
        if name not in (EMBEDDING, HEAD):
            assert torch.equal(tiny.tensors(Path("out"))[name], tensor)
    assert run(capsys, "verify", "out").status == 0


@pytest.mark.usefixtures("models")
def test_omp(capsys: pytest.CaptureFixture[str]) -> None:
    found = operate(capsys, "--k", "3")
    for name in (EMBEDDING, HEAD):
        shared = [*SHARED, "<begin>"]
        atoms = rows("donor", name, shared).double().numpy()
        own = torch.cat((rows("model", name, SHARED), rows("model", name, ["<s>"]))).double().numpy()
        # In the order of the donor's numbers, which decides among equals only.
        errors: list[float] = []
        for token, made in zip(NEW, rows("out", name, NEW).double().numpy(), strict=True):
            target = rows("donor", name, [token])[0].double().numpy()
            chosen, weights = obvious(target, atoms, 3)
            np.testing.assert_allclose(made, weights @ own[chosen], rtol=1e-4, atol=1e-5)
            errors.append(np.linalg.norm(target - weights @ atoms[chosen]) / np.linalg.norm(target))
        table = next(t for t in found["tables"] if t["name"] == name)
        assert table["error"] == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("scheme", ["distance_proportional", "barycentric", "least_squares"])
@pytest.mark.parametrize("cosine", [False, True])
def test_common_interpolation(scheme: str, cosine: bool, capsys: pytest.CaptureFixture[str]) -> None:
    operate(capsys, "-a", "common_interpolation", "-k", "3", "-w", scheme, *["-c"] * cosine)
    shared = [*SHARED, "<begin>"]
    atoms = rows("donor", EMBEDDING, shared).double().numpy()
    own = torch.cat((rows("model", EMBEDDING, SHARED), rows("model", EMBEDDING, ["<s>"]))).double().numpy()
    for token, made in zip(NEW, rows("out", EMBEDDING, NEW).numpy(), strict=True):
        x = rows("donor", EMBEDDING, [token])[0].double().numpy()
        lengths = np.linalg.norm(atoms, axis=1) * np.linalg.norm(x)
        distances = 1 - atoms @ x / lengths if cosine else np.linalg.norm(atoms - x, axis=1)
        near = np.argsort(distances)[:3]
        if scheme == "distance_proportional":
            raw = 1 - distances[near] if cosine else 1 / distances[near]
            weights = raw / raw.sum()
        elif scheme == "least_squares":
            weights = np.linalg.lstsq(atoms[near].T, x)[0]
        else:
            # min |x - w A|² with Σ w = 1, by Lagrange's multiplier.
            system = np.block([[atoms[near] @ atoms[near].T, np.ones((3, 1))], [np.ones((1, 3)), 0]])
            weights = np.linalg.solve(system, np.append(atoms[near] @ x, 1))[:3]
        np.testing.assert_allclose(made, weights @ own[near], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("models")
def test_constants(capsys: pytest.CaptureFixture[str]) -> None:
    operate(capsys, "-a", "zero", out="zeros")
    assert not rows("zeros", HEAD, NEW).any()
    operate(capsys, "-a", "mean", "-nvs", "2", out="means")
    expected = 2 * tiny.tensors(Path("model"))[EMBEDDING].double().mean(0).float()
    torch.testing.assert_close(rows("means", EMBEDDING, NEW), expected.expand(3, -1))


@pytest.mark.usefixtures("models")
def test_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("randn", "john_hewitt"):
        operate(capsys, "-a", method, out=method)
        operate(capsys, "-a", method, "--num-threads", "1", out=f"{method} again")
        first, again = (rows(out, EMBEDDING, NEW) for out in (method, f"{method} again"))
        assert torch.equal(first, again)
        assert len(first.unique()) == first.numel()
        assert not torch.equal(first, rows(method, HEAD, NEW))


def test_every_method_has_its_function() -> None:
    assert tuple(METHODS) == names.METHODS


def test_john_hewitt_has_mean_and_covariance_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    many = {"<unk>": 0, **{f"n{i}": i for i in range(1, 20001)}}
    words.model(Path("model"), words.content({"<unk>": 0, **{f"w{i}": i for i in range(1, 40)}}))
    words.model(Path("donor"), words.content(many))
    operate(capsys, "-a", "john_hewitt")
    own, made = (tiny.tensors(Path(folder))[EMBEDDING].double() for folder in ("model", "out"))
    torch.testing.assert_close(made.mean(0), own.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(made.T.cov(), own.T.cov(correction=0), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("method", "embedding", "head"),
    [
        ("mean", [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]),
        ("sum", [1.0, 1, 1], [1.0, 1, 1]),
        ("weighted_mean", [1 / 6, 2 / 6, 3 / 6], [3 / 6, 2 / 6, 1 / 6]),
        ("first_last", [0.0, 0, 1], [1.0, 0, 0]),
    ],
)
def test_subword(
    method: str,
    embedding: list[float],
    head: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ġab is cut into three; in an embedding the last one says most, in a head the first."""
    monkeypatch.chdir(tmp_path)
    ours, theirs = byte_level(["Ġ", "a", "b"]), byte_level(["Ġab", "a", "Ã"])
    for name, own in (("model", ours), ("donor", theirs)):
        tiny.decoder(Path(name), 2, vocab=3, vocab_size=3)
        Path(name, "tokenizer.json").write_text(json.dumps(own.content))
        Path(name, "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    operate(capsys, "-a", "subword", "-s", method)
    for name, weights in ((EMBEDDING, embedding), (HEAD, head)):
        own, made = (tiny.tensors(Path(folder))[name] for folder in ("model", "out"))
        torch.testing.assert_close(made[0], torch.tensor(weights) @ own)
        assert torch.equal(made[1], own[1])
        assert not made[2].any()  # a byte that the model cannot say


def turn(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.mark.parametrize("method", ["omp", "landmark_pca", "stb"])
def test_turned_space_is_turned_back(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the donor's embedding is the model's in other axes, the rows that it lacks come out right."""
    monkeypatch.chdir(tmp_path)
    size, count = 6, 60
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(count, size, generator=generator) * torch.arange(1.0, size + 1) + 3
    known = {"<unk>": 0, **{f"w{i}": i for i in range(1, 50)}}
    everything = known | {f"n{i}": i for i in range(50, count)}
    for name, vocabulary, table in (
        ("model", known, truth[:50]),
        ("donor", everything, truth @ turn(size, 2)),
    ):
        tiny.decoder(
            Path(name),
            2,
            hidden=size,
            vocab=len(table),
            vocab_size=len(table),
            without=(EMBEDDING,),
            extra={EMBEDDING: table.contiguous()},
        )
        Path(name, "tokenizer.json").write_text(json.dumps(words.content(vocabulary)))
        Path(name, "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    operate(capsys, "-a", method, "-k", "6")
    torch.testing.assert_close(tiny.tensors(Path("out"))[EMBEDDING], truth, atol=1e-3, rtol=1e-3)


def test_turning_is_that_of_rotary_embeddings() -> None:
    """As transformers turns the heads of a Llama."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    rotate: Any = apply_rotary_pos_emb
    x, positions = torch.randn(2, 5, 12), torch.tensor([3.0, 0, -2, 7, 1.5])
    angles = positions[:, None] * 100.0 ** (-torch.arange(0, 4, 2) / 4)
    both = torch.cat((angles, angles), -1)[None]
    heads = x.view(2, 5, 3, 4).transpose(1, 2)
    expected, _ = rotate(heads, heads, both.cos(), both.sin())
    torch.testing.assert_close(
        turned(x, positions.expand(2, 5), 3, 100.0), expected.transpose(1, 2).flatten(2)
    )


def test_mp_rope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A donor's row that is a turned one of a shared token becomes the model's, turned by as much."""
    monkeypatch.chdir(tmp_path)
    settings: dict[str, object] = {"num_attention_heads": 2, "rope_theta": 50.0}
    shared = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))
    shared[2] *= 3
    angle = torch.tensor([0.3])
    target = 2 * turned(shared[2:3], angle, 2, 50.0)
    vocabulary = {"<unk>": 0, **{f"w{i}": i for i in range(1, 5)}}
    for name, own, table in (
        ("model", vocabulary, None),
        ("donor", vocabulary | {"new": 5}, torch.cat((shared, target))),
    ):
        tiny.decoder(
            Path(name), 3, hidden=8, vocab=len(own), vocab_size=len(own), **settings,
            without=(EMBEDDING,) if table is not None else (),
            extra={EMBEDDING: table} if table is not None else None,
        )  # fmt: skip
        Path(name, "tokenizer.json").write_text(json.dumps(words.content(own)))
        Path(name, "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    operate(capsys, "-a", "mp_rope", "-k", "1")
    own, made = (tiny.tensors(Path(folder))[EMBEDDING] for folder in ("model", "out"))
    torch.testing.assert_close(made[5:], 2 * turned(own[2:3], angle, 2, 50.0), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("models")
def test_padding_and_noise(capsys: pytest.CaptureFixture[str]) -> None:
    operate(capsys, "-k", "3", out="plain")
    operate(capsys, "-k", "3", "--pad-to-multiple-of", "8", "-nvn", "0.1")
    own, plain, made = (tiny.tensors(Path(folder))[EMBEDDING] for folder in ("model", "plain", "out"))
    assert len(made) == 16
    torch.testing.assert_close(made[13:], own.double().mean(0).float().expand(3, -1))
    change = made[:13] - plain
    number = words.numbers(Path("out"))
    assert sorted(change.any(1).nonzero().flatten().tolist()) == sorted(number[token] for token in NEW)
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 16


@pytest.mark.usefixtures("models")
def test_untrained_tokens_are_left_aside(capsys: pytest.CaptureFixture[str]) -> None:
    found = operate(capsys, "-k", "2", "--magikarp")
    (embedding, _) = found["tables"]
    assert embedding["exact"] + embedding["made"] + embedding["untrained"] == 13
    assert embedding["exact"] < 10


def test_there_and_back_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With real tokenizers: what both know is the same to the bit after two operations."""
    monkeypatch.chdir(tmp_path)
    tiny_model("gpt2", Path("model"), seed=1, tied=True, dtype="bfloat16")
    tiny_model("mon", Path("donor"), seed=2)
    before = operate(capsys, "-a", "mean")
    (table,) = before["tables"]
    assert table["name"] == EMBEDDING
    assert table["exact"] > 5000
    done = run(capsys, "tokensurgeon", "out", "model", "back", "-a", "mean", "--json")
    assert done.status == 0, done.err
    ours, theirs = words.numbers(Path("model")), words.numbers(Path("out"))
    start, back = (tiny.tensors(Path(folder))[EMBEDDING] for folder in ("model", "back"))
    assert (start.shape, start.dtype) == (back.shape, back.dtype)
    both = [ours[t] for t in ours if t in theirs and t.isascii() and t.isalpha()]
    assert len(both) > 1000
    assert torch.equal(start[both], back[both])
    tokenizer = LIBRARY.AutoTokenizer.from_pretrained("out")
    assert len(tokenizer) <= tiny.tensors(Path("out"))[EMBEDDING].shape[0]
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    with torch.inference_mode():
        assert model(**tokenizer("A word.", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.usefixtures("models")
def test_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="--k is 64, but the vocabularies share 10 tokens"):
        plan_transplant(Transplant.of("model", "donor"))
    with pytest.raises(RecipeError, match="--k is 0"):
        plan_transplant(Transplant.of("model", "donor", k=0))
    with pytest.raises(NotSupportedError, match="mp_rope turns halves of heads"):
        plan_transplant(Transplant.of("model", "donor", k=2, method="mp_rope"))
    with pytest.raises(RecipeError, match="--approximation-method is 'magic'"):
        plan_transplant(Transplant.of("model", "donor", method="magic"))
    Path("donor/tokenizer.json").unlink()
    Path("donor/tokenizer_config.json").unlink()
    with pytest.raises(MismatchError, match="'donor' has no tokenizer"):
        plan_transplant(Transplant.of("model", "donor"))
    done = run(capsys, "tokensurgeon", "model", "nowhere", "out")
    assert (done.status, Path("out").exists()) == (3, False)


@pytest.mark.usefixtures("models")
def test_said_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "tokensurgeon", "model", "donor", "-k", "3", "--plan")
    assert done.status == 0
    assert "model with the 13 tokens of donor: 10 are the same, 3 are made by omp" in done.out
    assert not Path("out").exists()
    assert "Missing argument 'OUT'" in run(capsys, "tokensurgeon", "model", "donor", "-k", "3").err
    done = run(capsys, "tokensurgeon", "model", "donor", "out", "-k", "3")
    assert "written to out" in done.out
    card = Path("out/README.md").read_text()
    assert "tokensurgeon" in card


@pytest.mark.usefixtures("models")
def test_options_of_other_methods_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("-a", "subword", "-w", "barycentric", "-c", "-s", "sum", "-k", "64")
    done = run(capsys, "tokensurgeon", "model", "donor", *options, "--plan")
    assert done.status == 0
    assert "--weight-scheme has no effect with subword, only with common_interpolation" in done.err
    assert "--cosine-similarity has no effect with subword" in done.err
    assert done.err.count("has no effect") == 2  # --k is what it is without being given


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("options", [("--plan",), ("--overwrite",)])
@pytest.mark.parametrize("out", ["model", "donor", "donor/below"])
def test_output_is_looked_at_first(
    options: tuple[str, ...], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    # That k is too large is found out later.
    done = run(capsys, "tokensurgeon", "model", "donor", out, "-k", "64", *options)
    relation = "is inside" if "/" in out else "is"
    assert f"{out} {relation} the folder of the input '{out.partition('/')[0]}'" in done.err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_smollm2_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real model that was given GPT-2's tokenizer, and its own again, reads texts nearly as well as before.

    What GPT-2 lacks of its vocabulary has to be made of what GPT-2 has.
    """
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    base = str(importlib.import_module("fetch_base").fetch_base())
    tiny_model("gpt2", Path("donor"), seed=2)
    there = run(capsys, "tokensurgeon", base, "donor", "there", "-k", "4", "--json")
    assert there.status == 0, there.err
    back = run(capsys, "tokensurgeon", "there", base, "back", "--json")
    assert back.status == 0, back.err
    (table,) = json.loads(back.out)["tables"]
    assert table["made"] > 1000
    before, after = (tiny.tensors(Path(folder))[EMBEDDING] for folder in (base, "back"))
    same = (before == after).all(1).sum().item()
    # What begins and ends texts is one token in GPT-2.
    assert same >= table["exact"] - 2
    tokenizer = LIBRARY.AutoTokenizer.from_pretrained(base)
    ids = tokenizer("\n\n".join(SAMPLES[name] for name in ("latin", "python", "digits")), return_tensors="pt")
    losses: list[float] = []
    for folder in (base, "back"):
        model = LIBRARY.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            losses.append(model(**ids, labels=ids["input_ids"]).loss.item())
    # Perplexity is the exponential of this: 22.6 before, 29.8 after, as docs/tokensurgeon.md says.
    assert losses[1] < losses[0] + 0.3
