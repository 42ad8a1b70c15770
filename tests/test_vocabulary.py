"""Models with different tokenizers: each token of the output gets the row that the rule says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
import word_tokenizers as words
from command import run
from meldkit import merge, plan
from meldkit.checkpoint import Scratch, open_checkpoint, open_files
from meldkit.errors import CheckpointError, MismatchError, RecipeError
from meldkit.merge import MergeOptions
from meldkit.vocab import AlignedRows, MeanRow, RowMap, tokenizer_of_folder

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUIET = MergeOptions(write_model_card=False)

# ---- rows of tables


@st.composite
def row_maps(draw: st.DrawFn, sizes: Sequence[int]) -> RowMap:
    """Rows of tables of these sizes: none, one or several for each new row, many of them neighbours."""
    counts: list[int] = []
    entries: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 30))):
        count = draw(st.sampled_from([0, 1, 1, 1, 1, 2, 3]))
        counts.append(count)
        for _ in range(count):
            last = entries[-1] if entries else (0, -1)
            follows = last[1] + 1 < sizes[last[0]] and draw(st.booleans())
            table = last[0] if follows else draw(st.integers(0, len(sizes) - 1))
            entries.append((table, last[1] + 1 if follows else draw(st.integers(0, sizes[table] - 1))))
    starts = np.concatenate([[0], np.cumsum(counts)])
    tables = np.array([table for table, _ in entries], np.int16)
    return RowMap(starts, tables, np.array([row for _, row in entries], np.int64))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_of_a_table_is_made_of_the_rows_that_its_map_says(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    columns = data.draw(st.integers(1, 5))
    dtypes = [data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])) for _ in sizes]
    rows = data.draw(row_maps(sizes))
    values = [torch.randn(size, columns).to(dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    expected = torch.zeros(len(rows), columns)
    for i in range(len(rows)):
        entries = [values[table][row].float() for table, row in rows.entries(i)]
        if entries:
            expected[i] = sum(entries[1:], entries[0]) / len(entries)
    with tempfile.TemporaryDirectory() as temporary, open_files() as files:
        named = {f"t{i}": value for i, value in enumerate(values)}
        checkpoint = open_checkpoint("m", tiny.stored(Path(temporary), named))
        tables = tuple(checkpoint[name] for name in named)
        from dataclasses import replace

        info = replace(tables[0], shape=(len(rows), columns), encoding=AlignedRows(tables, rows))
        source = info.open(files)
        for _ in range(5):
            start = data.draw(st.integers(0, info.numel))
            stop = data.draw(st.integers(start, info.numel))
            out = torch.full((stop - start,), float("nan"))
            source.read(start, stop, out, Scratch())
            assert torch.equal(out, expected.flatten()[start:stop])
        mean = replace(tables[0], shape=(1, columns), encoding=MeanRow(info)).open(files)
        out = torch.empty(columns)
        mean.read(0, columns, out, Scratch())
        assert torch.allclose(out, expected.mean(0), atol=1e-6)


# ---- which row a token gets, against a rule without arrays


def expected_row(
    token: str,
    model: int,
    tokens: Sequence[Mapping[str, int]],
    tables: Sequence[Tensor],
    base: int | None,
    said: tuple[Any, bool] | None,
) -> Tensor:
    """The row of a token in a model, from the rule of docs/tokenizers.md word by word."""
    has = [token in known and known[token] < len(table) for known, table in zip(tokens, tables, strict=True)]
    source, force = said or (None, False)
    if has[model] and not force:
        return tables[model][tokens[model][token]]
    if source == "zero":
        return torch.zeros(tables[0].shape[1])
    if isinstance(source, tuple):
        return tables[source[0]][source[1]]
    if isinstance(source, int):
        return tables[source][tokens[source][token]]
    owners = [m for m in range(len(tokens)) if has[m]]
    if len(owners) == 1:
        return tables[owners[0]][tokens[owners[0]][token]]
    if base is not None and has[base]:
        return tables[base][tokens[base][token]]
    rows = [tables[m][tokens[m][token]] for m in owners]
    return sum(rows[1:], rows[0]) / len(rows) if rows else torch.zeros(tables[0].shape[1])


WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_token_gets_the_row_that_the_rule_says(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3), "models")
    vocabularies: list[dict[str, Any]] = []
    for m in range(count):
        own = data.draw(st.permutations(WORDS), f"words of {m}")[: data.draw(st.integers(2, 7))]
        added = data.draw(st.lists(st.sampled_from(["<x>", "<y>", "a"]), unique=True), f"added to {m}")
        extra = [token for token in added if token not in own]
        vocabularies.append(words.content({w: i for i, w in enumerate(own)}, extra))
    tied = data.draw(st.booleans(), "tied")
    base = data.draw(st.none() | st.integers(0, count - 1), "base")
    source = data.draw(st.sampled_from(["union", "base", *range(count)]), "source")
    multiple = data.draw(st.sampled_from([None, 1, 4, 7]), "multiple")
    weights = [data.draw(st.sampled_from([0.25, 1.0, 2.0])) for _ in range(count)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = [
            words.model(folder / f"m{m}", vocabulary, seed=m, tied=tied)
            for m, vocabulary in enumerate(vocabularies)
        ]
        tokens = [words.numbers(path) for path in paths]
        said: dict[str, tuple[Any, bool]] = {}
        listed: dict[str, Any] = {}
        for token in data.draw(st.lists(st.sampled_from([*WORDS, "<x>", "<new>"]), unique=True, max_size=2)):
            model = data.draw(st.integers(0, count - 1))
            kinds = ["zero", "token_id", *(["model"] if token in tokens[model] else [])]
            kind, force = data.draw(st.sampled_from(kinds)), data.draw(st.booleans())
            row = data.draw(st.integers(0, len(tokens[model]) - 1))
            said[token] = {"zero": "zero", "token_id": (model, row), "model": model}[kind], force
            listed[token] = {
                "source": {
                    "zero": {"kind": "zero"},
                    "token_id": {"kind": "model_token", "model": str(paths[model]), "token_id": row},
                    "model": str(paths[model]),
                }[kind],
                "force": force,
            }
        recipe: dict[str, Any] = {
            "merge_method": "linear",
            "models": [
                {"model": str(path), "parameters": {"weight": weight}}
                for path, weight in zip(paths, weights, strict=True)
            ],
            "parameters": {"normalize": False},
            "tokenizer": {
                "source": source if isinstance(source, str) else str(paths[source]),
                "tokens": listed,
                "pad_to_multiple_of": multiple,
            },
        }
        if base is not None:
            recipe["base_model"] = str(paths[base])
        out = merge(recipe, folder / "out", QUIET).path
        new, result = words.numbers(out), tiny.tensors(out)
        donor = base or 0
        kept = tokens[donor] if isinstance(source, str) else tokens[source]
        assert {token: new[token] for token in kept} == kept
        others = set().union(*tokens) if source == "union" else set[str]()
        assert set(new) == kept.keys() | others | said.keys()
        size = max(new.values()) + 1
        rows = -(-size // (multiple or 1)) * (multiple or 1)
        config = json.loads((out / "config.json").read_text())
        assert config["vocab_size"] == rows
        assert (HEAD in result) is (not tied)
        for name in [EMBEDDING] if tied else [EMBEDDING, HEAD]:
            tables = [tiny.tensors(path)[name] for path in paths]
            assert result[name].shape == (rows, words.HIDDEN)
            by_model = [
                {t: expected_row(t, m, tokens, tables, base, said.get(t)) for t in new} for m in range(count)
            ]
            for token, number in new.items():
                wanted = sum(w * own[token] for w, own in zip(weights, by_model, strict=True))
                assert torch.allclose(result[name][number], wanted, atol=1e-5), token
            if rows > size:
                means = [torch.stack(list(own.values())).mean(0) for own in by_model]
                wanted = sum(w * mean for w, mean in zip(weights, means, strict=True))
                assert torch.allclose(result[name][size:], wanted.expand(rows - size, -1), atol=1e-5)


# ---- without a setting


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models, one of which has a token more and two that changed places."""
    one = words.content({"a": 0, "b": 1, "c": 2})
    other = words.content({"a": 0, "c": 1, "b": 2}, ["<new>"])
    return words.model(tmp_path / "one", one, seed=1), words.model(tmp_path / "other", other, seed=2)


def linear(*paths: Path, **more: Any) -> dict[str, Any]:
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in paths]
    return {"merge_method": "linear", "models": models, **more}


def test_different_vocabularies_are_an_error_that_says_what_to_add(pair: tuple[Path, Path]) -> None:
    with pytest.raises(MismatchError) as error:
        plan(linear(*pair))
    other = pair[1]
    assert str(error.value) == (
        "the models have different vocabularies, so that rows of their embeddings do not belong together: "
        f"1 token only in '{other}': '<new>' (3); "
        "2 of 3 shared tokens have other numbers: 'b' (1 and 2), 'c' (2 and 1)\n"
        "  add to the recipe the two lines\n"
        "    tokenizer:\n"
        "      source: union\n"
        "  to keep the tokens of all models (or 'source: base' for those of the base model only); "
        "--allow-crop merges rows of equal number"
    )


@pytest.mark.parametrize("flag", ["allow_crop", "unsafe_truncate_embeddings"])
def test_cropping(pair: tuple[Path, Path], flag: str, tmp_path: Path) -> None:
    result = merge(linear(*pair), tmp_path / "out", MergeOptions(**{flag: True}))
    different, cut = result.plan.warnings
    assert different.startswith(
        "rows of equal number are merged, though not of equal tokens: 1 token only in"
    )
    assert cut == f"the embeddings of '{pair[1]}' are cut from 4 to 3 rows"
    one, other = map(tiny.tensors, pair)
    for name in (EMBEDDING, HEAD):
        assert torch.equal(tiny.tensors(result.path)[name], (one[name] + other[name][:3]) / 2)
    assert json.loads((result.path / "config.json").read_text())["vocab_size"] == 3


def test_rows_behind_the_last_token_are_kept(tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1})
    paths = [words.model(tmp_path / f"m{seed}", tokenizer, seed=seed, rows=8) for seed in range(2)]
    result = tiny.tensors(merge(linear(*paths), tmp_path / "out", QUIET).path)
    assert torch.equal(result[EMBEDDING], sum(tiny.tensors(path)[EMBEDDING] for path in paths) / 2)


def test_equal_vocabularies_written_differently_are_equal(tmp_path: Path) -> None:
    one, other = words.content({"a": 0, "b": 1}), words.content({"b": 1, "a": 0})
    other["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    paths = [words.model(tmp_path / f"m{m}", t, seed=m) for m, t in enumerate([one, other])]
    assert plan(linear(*paths)).tokenizer is None


# ---- what follows from the vocabulary


def test_settings_speak_of_the_new_numbers(tmp_path: Path) -> None:
    one = words.model(
        tmp_path / "one",
        words.content({"a": 0, "</s>": 1, "b": 2}, ["<pad>"]),
        eos_token_id=[1, 2],
        pad_token_id=3,
        forced_bos_token_id=2,
        unk_token_id=-1,
        text_config={"bos_token_id": 0, "vocab_size": 4},
    )
    generation = {"eos_token_id": 1, "pad_token_id": 3, "temperature": 0.5}
    (one / "generation_config.json").write_text(json.dumps(generation))
    other = words.model(
        tmp_path / "other",
        words.content({"<end>": 0, "b": 1, "a": 2}),
        eos_token_id=0,
        settings={"pad_token": "<end>"},
        decoder_start_token_id=2,
    )
    out = merge(linear(one, other, tokenizer={"source": str(other)}), tmp_path / "out", QUIET).path
    config = json.loads((out / "config.json").read_text())
    assert config["eos_token_id"] == 0  # the tokenizer's own model says so
    assert config["pad_token_id"] == 0  # its tokenizer_config.json says so
    assert config["forced_bos_token_id"] == 1  # "b"
    assert config["unk_token_id"] == -1
    assert config["decoder_start_token_id"] == 2  # only the tokenizer's model has it
    assert config["text_config"] == {"bos_token_id": 2, "vocab_size": 3}
    assert config["vocab_size"] == 3
    generation = json.loads((out / "generation_config.json").read_text())
    added = {"decoder_start_token_id": 2}
    assert generation == {"eos_token_id": 0, "pad_token_id": 0, "temperature": 0.5, **added}
    assert words.numbers(out) == words.numbers(other)


def test_tokens_of_sounds_are_not_those_of_texts(tmp_path: Path) -> None:
    """Which have an embedding and a number of their own, in a section that may come first."""
    sounds = "model.embed_audio.embedding.weight"
    one, other = (
        words.model(
            tmp_path / name,
            words.content(tokens),
            audio_config={"vocab_size": 3},
            text_config={"vocab_size": len(tokens)},
            extra={sounds: torch.randn(3, 4)},
        )
        for name, first in (("one", 0), ("other", 2))
        for tokens in [{"<unk>": 0, **{f"w{first + i}": i for i in range(1, 300)}}]
    )
    path = one / "config.json"
    first = json.loads(path.read_text())
    path.write_text(json.dumps({"audio_config": first.pop("audio_config"), **first}))
    out = merge(linear(one, other, tokenizer={"source": "union"}), tmp_path / "out", QUIET).path
    merged, config = tiny.tensors(out), json.loads((out / "config.json").read_text())
    assert merged["model.embed_tokens.weight"].shape == (302, 4)
    assert merged[sounds].shape == (3, 4)
    assert (config["audio_config"]["vocab_size"], config["text_config"]["vocab_size"]) == (3, 302)


def test_settings_speak_of_no_token_behind_the_last_row(tmp_path: Path) -> None:
    path = words.model(
        tmp_path / "m",
        words.content({"a": 0, "b": 1}),
        rows=8,
        pad_token_id=7,
        eos_token_id=[1, 6],
        bos_token_id=-1,
    )
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 6], "pad_token_id": 7}))
    result = merge(linear(path, tokenizer={}), tmp_path / "out", QUIET)
    assert result.plan.warnings == (
        f"eos_token_id is [1, 6] in the configuration of '{path}', but the output has 2 rows; "
        "what has none is left out there",
        f"pad_token_id is 7 in the configuration of '{path}', but the output has 2 rows; "
        "what has none is left out there",
    )
    config = json.loads((result.path / "config.json").read_text())
    assert [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [-1, [1], None]
    generation = json.loads((result.path / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [1], "pad_token_id": None}


def test_a_tied_sibling_takes_heads_for_its_head(tmp_path: Path) -> None:
    one = words.model(tmp_path / "one", words.content({"a": 0, "b": 1, "c": 2}), seed=1)
    tied = words.model(tmp_path / "tied", words.content({"b": 0, "c": 1}), seed=2, tied=True)
    recipe = linear(one, tied, base_model=str(one), tokenizer={})
    merged, x, y = map(tiny.tensors, (merge(recipe, tmp_path / "out", QUIET).path, one, tied))
    assert torch.allclose(merged[HEAD][0], x[HEAD][0])  # the only head that has a row for it
    assert torch.allclose(merged[EMBEDDING][0], x[EMBEDDING][0])
    assert torch.allclose(merged[HEAD][1], (x[HEAD][1] + y[EMBEDDING][0]) / 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tokens_have_the_numbers_that_transformers_gives_them(data: st.DataObject) -> None:
    """Whatever the files say, of which some count and some do not."""
    from transformers import AutoTokenizer

    texts = ["<p>", "<q>", "<r>", "", "a"]
    numbers = st.lists(st.integers(2, 9), min_size=5, max_size=5, unique=True)

    def entries(label: str) -> dict[int, dict[str, Any]]:
        chosen = data.draw(st.lists(st.sampled_from(texts), unique=True, max_size=4), label)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        pairs = zip(data.draw(numbers, f"numbers of {label}"), chosen, strict=False)
        return {n: {"content": text, **flags, "special": data.draw(st.booleans())} for n, text in pairs}

    stored = [{"id": number, **entry} for number, entry in entries("tokenizer.json").items()]
    content = words.content({"a": 0, "b": 1}) | {"added_tokens": stored}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if data.draw(st.booleans(), "has added_tokens_decoder"):
        config["added_tokens_decoder"] = {str(n): e for n, e in entries("added_tokens_decoder").items()}
    for role in data.draw(st.lists(st.sampled_from(["bos", "eos", "pad", "unk"]), unique=True), "roles"):
        config[f"{role}_token"] = data.draw(st.sampled_from([*filter(None, texts), "<s>"]), role)
    more = st.lists(st.sampled_from([*filter(None, texts), "<t>"]), unique=True)
    config["additional_special_tokens"] = data.draw(more, "more")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        ours = tokenizer_of_folder("m", folder)
        assert ours is not None
        assert ours.tokens == AutoTokenizer.from_pretrained(folder).get_vocab()


def test_added_tokens_are_numbered_on_without_holes(tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1}, ["<x>"], first=5)
    path = words.model(tmp_path / "m", tokenizer, rows=8)
    plain = words.model(tmp_path / "plain", words.content({"a": 0, "b": 1, "c": 2}), seed=2)
    result = merge(linear(path, plain, tokenizer={}), tmp_path / "out", QUIET)
    assert result.plan.warnings == (
        f"the tokenizer of '{path}' gives '<x>' the number 5, but whatever reads it takes 2, because added "
        "tokens are numbered on without holes; so does this merge",
    )
    assert words.numbers(result.path) == {"a": 0, "b": 1, "<x>": 2, "c": 3}
    (added,) = json.loads((result.path / "tokenizer.json").read_text())["added_tokens"]
    assert added["id"] == 2
    rows, own = tiny.tensors(result.path)[EMBEDDING], tiny.tensors(path)[EMBEDDING]
    assert torch.allclose(rows[2], own[2])


def test_tokens_without_a_row_do_not_make_vocabularies_differ(tmp_path: Path) -> None:
    plain = words.model(tmp_path / "plain", words.content({"a": 0, "b": 1}), seed=1)
    padded = words.model(
        tmp_path / "padded", words.content({"a": 0, "b": 1}), seed=2, settings={"pad_token": "[PAD]"}
    )
    warning = f"1 token of '{padded}' without a row in its embedding of 2 rows: '[PAD]' (2)"
    assert plan(linear(plain, padded)).warnings == (warning,)
    assert plan(linear(padded, plain)).warnings == (warning,)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "added_tokens.json"])
def test_tokens_that_are_added_beside_the_tokenizer_count(where: str, tmp_path: Path) -> None:
    entry = {"3": {"content": "<x>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}}
    declared = {"added_tokens_decoder": entry} if where == "tokenizer_config.json" else {}
    one = words.model(
        tmp_path / "one", words.content({"a": 0, "b": 1, "c": 2}), seed=1, rows=4, settings=declared
    )
    if not declared:
        (one / where).write_text(json.dumps({"<x>": 3}))
    other = words.model(tmp_path / "other", words.content({"a": 0, "b": 1, "c": 2, "d": 3}), seed=2)
    with pytest.raises(MismatchError, match="'<x>' \\(3\\)"):
        plan(linear(one, other))
    out = merge(linear(one, other, tokenizer={}), tmp_path / "out", QUIET).path
    assert words.numbers(out) == {"a": 0, "b": 1, "c": 2, "<x>": 3, "d": 4}
    table, x = tiny.tensors(out)[EMBEDDING], tiny.tensors(one)[EMBEDDING]
    assert torch.allclose(table[3], x[3])


def test_a_marker_of_one_model_is_one_though_another_has_it_as_a_word(tmp_path: Path) -> None:
    plain = words.model(tmp_path / "plain", words.content({"a": 0, "<x>": 1}), seed=1)
    marked = words.model(tmp_path / "marked", words.content({"a": 0}, ["<x>"]), seed=2)
    out = merge(linear(plain, marked, tokenizer={}), tmp_path / "out", QUIET).path
    (token,) = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    assert (token["content"], token["id"], token["special"]) == ("<x>", 1, True)


def test_padding_alone_is_evened_out(tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1, "c": 2})
    sizes = {"short": 3, "long": 8}
    one, other = (words.model(tmp_path / n, tokenizer, seed=r, rows=r) for n, r in sizes.items())
    for first, second in ((one, other), (other, one)):
        result = merge(linear(first, second), tmp_path / f"of-{first.name}", QUIET)
        assert any("padding is the latter's" in note for note in result.plan.notes)
        merged, x, y = map(tiny.tensors, (result.path, first, second))
        for name in (EMBEDDING, HEAD):
            assert merged[name].shape == x[name].shape
            assert torch.equal(merged[name][:3], (x[name][:3] + y[name][:3]) / 2)
            assert torch.equal(merged[name][3:], x[name][3:] if first is other else x[name][:0])


def test_numbers_in_lists_of_generation_settings_follow(tmp_path: Path) -> None:
    one = words.model(tmp_path / "one", words.content({"a": 0, "b": 1, "c": 2}), seed=1)
    settings = {"suppress_tokens": [0, 2], "begin_suppress_tokens": [0], "bad_words_ids": [[1, 2], [0, 1]]}
    (one / "generation_config.json").write_text(json.dumps(settings))
    other = words.model(tmp_path / "other", words.content({"b": 0, "c": 1}), seed=2)
    out = merge(linear(one, other, tokenizer={"source": str(other)}), tmp_path / "out", QUIET).path
    assert json.loads((out / "generation_config.json").read_text()) == {
        "eos_token_id": 1,
        "suppress_tokens": [1],
        "begin_suppress_tokens": None,
        "bad_words_ids": [[0, 1]],
    }


def test_generation_settings_that_a_template_makes_have_what_the_configuration_says(tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1}, ["<|im_start|>", "<|im_end|>"])
    path = words.model(tmp_path / "m", tokenizer, pad_token_id=0, bos_token_id=0)
    out = merge(linear(path, path, chat_template="chatml"), tmp_path / "out", QUIET).path
    settings = json.loads((out / "generation_config.json").read_text())
    assert settings == {"bos_token_id": 0, "pad_token_id": 0, "eos_token_id": [1, 3]}


def test_a_models_own_template_that_fails_is_a_warning(tmp_path: Path) -> None:
    path = words.model(tmp_path / "m", words.content({"a": 0}), settings={"chat_template": "{% if %}"})
    recipe = {"merge_method": "passthrough", "models": [{"model": str(path)}], "chat_template": "auto"}
    (warning,) = plan(recipe).warnings
    assert warning.startswith("line 1 of the chat_template: ")


def test_a_token_that_nobody_has_is_said_to_be_added(pair: tuple[Path, Path]) -> None:
    spec = {"tokens": {"<q>": {"source": {"kind": "zero"}}}}
    assert any(
        "'<q>' is added to the vocabulary, and looked for in texts as it is" in note
        for note in plan(linear(*pair, tokenizer=spec)).notes
    )
    with pytest.raises(RecipeError, match="a token is empty"):
        plan(linear(*pair, tokenizer={"tokens": {"": {"source": {"kind": "zero"}}}}))
    with pytest.raises(RecipeError, match="pad_to_multiple_of is 1,000,000,000"):
        plan(linear(*pair, tokenizer={"pad_to_multiple_of": 10**9}))


def test_tokens_along_another_size_are_refused(tmp_path: Path) -> None:
    tokenizer = words.content({f"w{i}": i for i in range(11)})
    paths = [words.model(tmp_path / f"m{m}", tokenizer, seed=m) for m in range(2)]
    for path in paths:
        tiny.stored(path, tiny.tensors(path) | {"cls.predictions.dense.weight": torch.ones(3, 11)})
    with pytest.raises(MismatchError, match=r"\[3, 11\], has its tokens along another size") as error:
        plan(linear(*paths, tokenizer={}))
    assert "save the models without their heads" in error.value.hint


def test_a_configuration_that_relies_on_a_default_says_the_number_of_tokens(tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1})
    path = words.model(tmp_path / "m", tokenizer, rows=5, text_config={"hidden_size": 4})
    config = json.loads((path / "config.json").read_text())
    del config["vocab_size"]
    (path / "config.json").write_text(json.dumps(config))
    out = merge(linear(path, path, tokenizer={}), tmp_path / "out", QUIET).path
    assert json.loads((out / "config.json").read_text())["text_config"]["vocab_size"] == 2


def test_a_tokenizer_that_belongs_to_no_merged_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    third = tmp_path / "third"
    third.mkdir()
    (third / "tokenizer.json").write_text(json.dumps(words.content({"c": 0, "<new>": 1, "z": 2})))
    out = merge(linear(*pair, tokenizer_source=str(third)), tmp_path / "out", QUIET).path
    one, other = (tiny.tensors(path)[EMBEDDING] for path in pair)
    expected = torch.stack([(one[2] + other[1]) / 2, other[3], torch.zeros(words.HIDDEN)])
    assert torch.allclose(tiny.tensors(out)[EMBEDDING], expected)


def test_added_tokens_keep_their_flags(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = pair
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0] |= {"lstrip": True, "special": False, "normalized": True}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"0": {"content": "a"}}}
    (one / "tokenizer_config.json").write_text(json.dumps(config))
    (one / "tokenizer.model").write_bytes(b"of another vocabulary")
    out = merge(linear(one, other, tokenizer={}), tmp_path / "out", QUIET).path
    assert not (out / "tokenizer.model").exists()
    added = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    assert added == tokenizer["added_tokens"]
    decoder = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder["0"] == {"content": "a"}
    assert decoder["3"]["content"] == "<new>"
    assert decoder["3"]["lstrip"]


def test_partial_work_of_another_alignment_is_not_continued(pair: tuple[Path, Path]) -> None:
    digests = {
        plan(linear(*pair, tokenizer=spec)).digest()
        for spec in (
            {},
            {"tokens": {"<new>": {"source": {"kind": "zero"}, "force": True}}},
            {"tokens": {"<new>": {"source": {"kind": "model_token", "model": str(pair[0]), "token": "a"}}}},
            {"tokens": {"<new>": {"source": {"kind": "model_token", "model": str(pair[0]), "token": "b"}}}},
        )
    }
    assert len(digests) == 4


def test_a_token_without_a_row_is_said_to_be_left_out_of_a_union(tmp_path: Path) -> None:
    one = words.model(tmp_path / "one", words.content({"a": 0, "b": 1}, ["<x>"]), seed=1)
    other = words.model(tmp_path / "other", words.content({"a": 0, "b": 1}, ["<x>", "<y>"]), seed=2, rows=2)
    made = plan(linear(one, other, tokenizer={}))
    assert made.warnings == (
        f"2 tokens of '{other}' without a row in its embedding of 2 rows: '<x>' (2), '<y>' (3)",
        f"1 token of '{other}' left out of the union, for want of a row in its embedding: '<y>'",
    )


def test_a_head_that_is_left_out_because_it_is_tied_is_not_said_to_be_aligned(tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1})
    path = words.model(tmp_path / "m", tokenizer, tie_word_embeddings=True)
    assert HEAD in tiny.tensors(path)
    notes = plan(linear(path, path, tokenizer={"pad_to_multiple_of": 4})).notes
    assert f"{EMBEDDING}: a row for each of 2 tokens, 4 rows" in notes
    assert [note for note in notes if HEAD in note] == [
        f"{HEAD}: left out; it is tied to the embedding (tie_word_embeddings)"
    ]


@pytest.mark.parametrize("base", [False, True])
def test_a_head_of_its_own_is_not_lost_without_a_warning(base: bool, tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1})
    tied = words.model(tmp_path / "tied", tokenizer, seed=1, tied=True)
    apart = words.model(tmp_path / "apart", tokenizer, seed=2)
    made = plan(linear(tied, apart, **({"base_model": str(tied)} if base else {})))
    (warning,) = made.warnings
    assert warning.startswith(f"{HEAD}: left out; '{apart}' has a head of its own, but '{tied}'")
    assert plan(linear(apart, tied)).warnings == ()


def byte_level(tokens: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer whose tokens are spelled in GPT-2's letters for bytes."""
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return words.content(tokens) | {"decoder": decoder}


def sentence_pieces(tokens: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer whose tokens have "▁" for a space."""
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return words.content(tokens) | {"decoder": replace}


def test_texts_that_are_spelled_otherwise_are_counted(tmp_path: Path) -> None:
    letters = words.model(
        tmp_path / "letters", byte_level({"a": 0, "Ġthe": 1, "Ã©": 2, "Ċ": 3, "x": 4}), seed=1
    )
    pieces = words.model(
        tmp_path / "pieces", sentence_pieces({"a": 0, "▁the": 1, "é": 2, "\n": 3, "y": 4}), seed=2
    )
    said = (
        "3 of these stand for texts that '{}' has under another spelling, as {}: "
        "tokens are matched by spelling"
    )
    for one, other, example in (
        (letters, pieces, "'▁the' for 'Ġthe'"),
        (pieces, letters, "'Ġthe' for '▁the'"),
    ):
        made = plan(linear(one, other, tokenizer={}))
        assert f"4 tokens of '{other}' added to the vocabulary of '{one}'" in made.notes
        assert said.format(one, example) in made.notes
        assert made.config is not None
        assert made.config["vocab_size"] == 9
    assert not any("spelling" in note for note in plan(linear(letters, letters, tokenizer={})).notes)


def test_a_model_without_tokenizer_does_not_lose_rows_silently(tmp_path: Path) -> None:
    one = words.model(tmp_path / "one", words.content({"a": 0, "b": 1}), seed=1)
    other = words.model(tmp_path / "other", None, seed=2, rows=5)
    with pytest.raises(MismatchError) as error:
        plan(linear(one, other))
    assert str(error.value) == (
        f"the embedding of '{other}' has 3 rows more than that of '{one}', "
        "and no tokenizer says whether they belong to tokens\n"
        "  copy its tokenizer into its folder; --allow-crop cuts these rows off"
    )
    assert plan(linear(one, other), MergeOptions(allow_crop=True)).warnings == (
        f"the embeddings of '{other}' are cut from 5 to 2 rows",
    )
    assert plan(linear(one, other, tokenizer={})).warnings == (
        f"'{other}' has no tokenizer, and 3 rows more than '{one}': they are lost; "
        "if they belong to tokens, copy its tokenizer into its folder",
    )


def test_a_model_without_tokenizer_is_taken_to_have_the_donors(tmp_path: Path) -> None:
    one = words.model(tmp_path / "one", words.content({"a": 0, "b": 1}), seed=1)
    other = words.model(tmp_path / "other", None, seed=2, rows=2)
    result = plan(linear(one, other, tokenizer={"pad_to_multiple_of": 4}))
    assert any("it is taken to have that of" in note for note in result.notes)
    assert plan(linear(one, other)).tokenizer is None


# ---- bad input


def broken(tmp_path: Path, tokenizer: object, text: str | None = None) -> dict[str, Any]:
    good = words.model(tmp_path / "good", words.content({"a": 0, "b": 1}), seed=1)
    bad = words.model(tmp_path / "bad", words.content({"a": 0, "b": 1, "c": 2}), seed=2)
    (bad / "tokenizer.json").write_text(json.dumps(tokenizer) if text is None else text)
    return linear(good, bad, tokenizer={"source": "union"})


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"model": {"vocab": {"a": 0, "b": 1, "c": 1}}}, "gives the number 1 to 'b' and to 'c'"),
        ({"model": {"type": "BPE", "vocab": 3}}, "has no vocabulary in its tokenizer.json"),
        ({"model": {"vocab": {"a": "0"}}}, "has no vocabulary in its tokenizer.json"),
        ({"model": {"vocab": {"a": 4294967296}}}, "gives the number 4,294,967,296 to 'a'"),
        (
            {"model": {"vocab": {"a": 0, "\ud800": 1}}},
            r"has the token '\\ud800' with half of a surrogate pair",
        ),
        ({"model": {"vocab": {"a": -1}}}, "gives the number -1 to 'a'"),
        ({"model": "text"}, "has no vocabulary in its tokenizer.json"),
        (
            {"model": {"type": "Magic", "vocab": {"a": 0}}},
            "cannot be loaded: its model is of the type 'Magic'",
        ),
        ({"model": []}, "has no vocabulary in its tokenizer.json"),
        ({"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}, "has an added token without content or id"),
        ({"model": {"vocab": {}}, "added_tokens": ["x"]}, "has an added token without content or id"),
        ({"model": {"vocab": {}}, "added_tokens": 7}, "has an added token without content or id"),
        (
            {"model": {"vocab": {str(i): i for i in range(9)}}},
            "has 9 tokens, its embedding 3 rows",
        ),
    ],
)
def test_broken_tokenizers(tokenizer: object, message: str, tmp_path: Path) -> None:
    recipe = broken(tmp_path, tokenizer)
    recipe["tokenizer"]["source"] = str(tmp_path / "bad")
    with pytest.raises((MismatchError, CheckpointError), match=message):
        plan(recipe)


def test_a_tokenizer_with_a_part_that_there_is_not(tmp_path: Path) -> None:
    path = words.model(tmp_path / "m", words.content({"a": 0}) | {"pre_tokenizer": {"type": "Magic"}})
    with pytest.raises(MismatchError, match=r"the tokenizer of '.*m' cannot be loaded: "):
        plan(linear(path, path, tokenizer={"source": "base"}))


def test_a_tokenizer_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        plan(broken(tmp_path, None, "{"))


def test_a_tokenizer_that_only_others_can_read(tmp_path: Path) -> None:
    recipe = broken(tmp_path, None, "")
    (tmp_path / "bad" / "tokenizer.json").unlink()
    (tmp_path / "bad" / "tokenizer.model").write_bytes(b"\x00nonsense")
    with pytest.raises(CheckpointError, match=r"the tokenizer of '.*bad' in .* cannot be read"):
        plan(recipe)


def test_tokens_without_a_row_are_named(tmp_path: Path) -> None:
    tokenizer = words.content({"a": 0, "b": 1, "c": 2}, ["<pad>"])
    path = words.model(tmp_path / "m", tokenizer, rows=3)
    warnings = plan(linear(path, path)).warnings
    assert f"1 token of '{path}' without a row in its embedding of 3 rows: '<pad>' (3)" in warnings


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "token '<q>' is in no model's vocabulary"),
        ({"force": True}, "token '<q>' has force, but no source"),
        ({"source": "ONE"}, "token '<q>': '.*one' has no row for '<q>'"),
        (
            {"source": {"kind": "model_token", "model": "ONE", "token": "zz"}},
            "'<q>': '.*one' has no row for 'zz'",
        ),
        (
            {"source": {"kind": "model_token", "model": "ONE", "token_id": 3}},
            "'<q>': '.*one' has no row for 3",
        ),
        ({"source": "ELSE"}, "is to come from '.*else', which is not merged"),
    ],
)
def test_tokens_from_where_there_are_none(
    pair: tuple[Path, Path], entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    text = json.dumps({"<q>": entry}).replace("ONE", str(pair[0])).replace("ELSE", str(tmp_path / "else"))
    with pytest.raises(RecipeError, match=message):
        plan(linear(*pair, tokenizer={"tokens": json.loads(text)}))


def test_errors_about_a_token_name_the_line_of_its_entry(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def error_of(entry: str) -> str:
        recipe = tmp_path / "recipe.yml"
        recipe.write_text(
            f"merge_method: linear\nmodels: [{{model: {pair[0]}}}, {{model: {pair[1]}}}]\n"
            "parameters: {weight: 1}\n"
            "tokenizer:\n  source: union\n  tokens:\n    a: {source: {kind: zero}}\n"
            f"    {entry}\n"
        )
        with pytest.raises(RecipeError) as error:
            plan(recipe)
        return error.value.message.removeprefix(f"{tmp_path}/")

    assert error_of("<q>: {}") == "recipe.yml:8: token '<q>' is in no model's vocabulary"
    assert error_of("<q>: {force: true}") == "recipe.yml:8: token '<q>' has force, but no source"
    assert error_of('"": {source: {kind: zero}}') == "recipe.yml:8: a token is empty"


def test_rows_of_different_length(tmp_path: Path) -> None:
    one = words.model(tmp_path / "one", words.content({"a": 0, "b": 1}))
    other = words.model(tmp_path / "other", words.content({"a": 0, "b": 1}), seed=1)
    values = tiny.tensors(other)
    tiny.stored(other, {name: t.repeat(1, 2) if t.ndim == 2 else t for name, t in values.items()})
    with pytest.raises(MismatchError, match=r"has shape \[2, 4\] in '.*one' and \[2, 8\] in '.*other'"):
        plan(linear(one, other, tokenizer={}))


# ---- the command


def test_command_compares_vocabularies(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "tokenizers", *pair)
    assert done.status == 0
    assert "'<new>' (3)" in done.out
    data = json.loads(run(capsys, "tokenizers", *pair, "--json").out)
    assert [model["tokens"] for model in data["models"]] == [3, 4]
    (difference,) = data["differences"]
    assert difference["shared"] == 3
    assert difference["moved"] == {"b": [1, 2], "c": [2, 1]}
    assert difference["only_second"] == {"<new>": 3}
