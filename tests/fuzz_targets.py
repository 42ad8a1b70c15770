"""What is fuzzed: small real models of every kind that is read, and what is done with damaged ones.

A case is a number: from it follow which files are damaged and how, so that every finding can be had again.
"""

from __future__ import annotations

import io
import os
import random
import signal
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import fuzz_outputs
import fuzz_vocabularies
import tiny
import word_tokenizers
from fuzz_damage import damaged
from gguf_files import LLAMA_KEYS, llama_tensors, write_gguf
from meldkit.api import merge, plan
from meldkit.checkpoint import open_checkpoint, open_files, read_all
from meldkit.errors import MeldError
from meldkit.options import MergeOptions
from meldkit.recipe import parse_recipe
from meldkit.vocab import trial

#: Seconds and bytes that one case may take; the latter include what threads reserve and do not use.
SECONDS, MEMORY = 5, 600 * 2**20
LINEAR = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\\n' + m.content | trim }}<|im_end|>\n{% endfor %}"
)


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        make: writes sound files into an empty current folder.
        act: does with them what users do, in that folder.
        damage: beginnings of the names of files that are damaged.
    """

    make: Callable[[], object]
    act: Callable[[random.Random], object]
    damage: tuple[str, ...]


def merged(recipe: str = LINEAR, **options: Any) -> Callable[[random.Random], object]:
    """A plan or a whole merge of that recipe."""

    def act(rng: random.Random) -> object:
        if Path("recipe.yml").exists():
            found: Any = parse_recipe(Path("recipe.yml").read_text("utf-8", "surrogateescape"))
        else:
            found = parse_recipe(recipe)
        chosen = MergeOptions(num_threads=1, **options)
        return merge(found, "out", chosen) if rng.random() < 0.3 else plan(found, chosen)

    return act


def pair(**config: object) -> None:
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(Path(name), seed, **config)  # type: ignore[arg-type]


def sharded() -> None:
    """Model b in two shards with an index."""
    import json

    pair()
    weights = tiny.tensors(Path("b"))
    Path("b/model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    from safetensors.torch import save_file

    for file in sorted(set(where.values())):
        save_file({n: weights[n] for n in names if where[n] == file}, Path("b") / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    Path("b/model.safetensors.index.json").write_text(json.dumps(index))


def recipe() -> None:
    tokenizers(equal=True)
    Path("recipe.yml").write_text(
        "merge_method: ties\nbase_model: a\ndtype: bfloat16\nname: x\n"
        "parameters:\n  weight: &w [{filter: mlp, value: [0, 0.5, 1]}, {value: 0.5}]\n  density: 0.5\n"
        "models:\n- model: b\n  parameters: {weight: *w}\n- {model: a}\ntokenizer_source: base\n"
    )


def adapted() -> None:
    pair()
    tiny.adapter(
        Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4), "model.layers.1.mlp.up_proj": (8, 4)}
    )


def adapter_alone() -> None:
    import json

    adapted()
    path = Path("lora/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "../a"}))


def tokenizers(*, equal: bool = False) -> None:
    import json

    for name, added in (("a", ["<s>", "</s>"]), ("b", ["<s>", "</s>" if equal else "<|x|>"])):
        content = word_tokenizers.content({"u": 0, "v": 1, "w" if equal else name: 2}, added)
        folder = word_tokenizers.model(Path(name), content, seed=len(name))
        token = {**content["added_tokens"][0]}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": token,
            "additional_special_tokens": ["<more>"],
            "chat_template": TEMPLATE,
            "added_tokens_decoder": {"3": token},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "added_tokens.json").write_text(json.dumps({"<y>": 5}))
        (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "pad_token": token}))
        (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 3, "eos_token_id": [4]}))
        (folder / "chat_template.jinja").write_text(TEMPLATE)


def parts() -> None:
    import json

    for seed, name in enumerate(("a", "b")):
        tiny.decoder(Path(name), seed)
        tiny.stored(Path(name, "2_Dense"), {"linear.weight": torch.ones(2, 4)}, {"in_features": 4})
        listed = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        ]
        Path(name, "modules.json").write_text(json.dumps(listed))


def gguf(each: int = 0) -> None:
    keys = LLAMA_KEYS | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", *(f"<{n}>" for n in range(3, 32))],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.chat_template": TEMPLATE,
    }
    for seed, name in enumerate(("a", "b")):
        Path(name).mkdir()
        write_gguf(Path(name, "m.gguf"), "llama", keys, llama_tensors(seed), each=each)


def pickled(zipped: bool) -> None:
    for seed, name in enumerate(("a", "b")):
        folder = tiny.decoder(Path(name), seed)
        weights = tiny.tensors(folder)
        (folder / "model.safetensors").unlink()
        buffer = io.BytesIO()
        torch.save(weights, buffer, _use_new_zipfile_serialization=zipped)
        (folder / "pytorch_model.bin").write_bytes(buffer.getvalue())


def quantised() -> None:
    import json

    tiny.decoder(Path("a"), 0, hidden=16)
    folder = tiny.decoder(Path("b"), 1, hidden=16)
    weights = tiny.tensors(folder)
    for name in list(weights):
        if "_proj" in name:
            weights[name + "_scale"] = torch.ones(weights[name].shape[0], 1)
            weights[name] = weights[name].to(torch.float8_e4m3fn)
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "channel",
                    "symmetric": True,
                    "dynamic": False,
                },
                "input_activations": None,
            }
        },
    }
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    tiny.stored(folder, weights, config)


def render(rng: random.Random) -> object:
    del rng
    text = Path("chat.jinja").read_bytes().decode("utf-8", "replace")
    found = trial.tried(text)
    assert found["error"] is None or isinstance(found["error"][1], str)
    return found


def read_everything(rng: random.Random) -> object:
    """Open model b alone, and read every tensor that its header tells of."""
    if rng.random() < 0.3:
        return merged()(rng)
    checkpoint = open_checkpoint("b", Path("b"))
    with open_files() as files:
        return [read_all(files, info).shape for info in checkpoint.values()]


UNION = LINEAR + "tokenizer_source: union\nchat_template: auto\n"
SETTINGS = ("b/config.json", "a/config.json", "b/generation")
TOKENIZER = (
    "b/tokenizer",
    "b/added",
    "b/special",
    "b/generation",
    "a/tokenizer",
    "a/added",
    "b/chat",
    "a/gen",
)

TARGETS: dict[str, Target] = {
    "safetensors": Target(pair, read_everything, ("b/model.safetensors",)),
    "index.json": Target(sharded, merged(), ("b/model.safetensors.index",)),
    "shards": Target(sharded, read_everything, ("b/model-",)),
    "recipe": Target(recipe, merged(), ("recipe.yml",)),
    "adapter": Target(adapted, merged(LINEAR.replace("model: b", "model: b+lora")), ("lora/",)),
    "adapter alone": Target(adapter_alone, merged(LINEAR.replace("model: b", "model: lora")), ("lora/",)),
    "tokenizer": Target(tokenizers, merged(UNION), TOKENIZER),
    "tokenizer copied": Target(lambda: tokenizers(equal=True), merged(), TOKENIZER),
    "config.json": Target(lambda: tokenizers(equal=True), merged(), SETTINGS),
    "config.json, slices": Target(
        pair,
        merged(
            "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"
            "- sources: [{model: b, layer_range: [1, 2]}]\n"
        ),
        SETTINGS,
    ),
    "modules.json": Target(parts, merged(), ("b/modules", "a/modules", "b/2_Dense/config")),
    "template": Target(lambda: Path("chat.jinja").write_text(TEMPLATE), render, ("chat.jinja",)),
    "GGUF": Target(gguf, read_everything, ("b/m",)),
    "GGUF in parts": Target(lambda: gguf(4), read_everything, ("b/m",)),
    "pickle, zip": Target(lambda: pickled(True), read_everything, ("b/pytorch",)),
    "pickle, legacy": Target(lambda: pickled(False), read_everything, ("b/pytorch",)),
    "quantised": Target(quantised, read_everything, ("b/config", "b/model")),
    "vocab.json": Target(fuzz_vocabularies.pairs, merged(UNION), (*TOKENIZER, "b/vocab", "b/merges")),
    "sentencepiece": Target(fuzz_vocabularies.sentences, merged(UNION), ("b/tokenizer",)),
    "tekken.json": Target(fuzz_vocabularies.tekken, merged(UNION), ("b/tekken",)),
    "record": Target(fuzz_outputs.finished, fuzz_outputs.checked, ("out/",)),
    "journal": Target(fuzz_outputs.stopped, fuzz_outputs.continued, ("out/.meldkit-partial/journal",)),
    "journal, moving": Target(
        fuzz_outputs.stopped_while_moving, fuzz_outputs.continued, ("out/.meldkit-partial/journal",)
    ),
}


@dataclass
class Bench:
    """The sound files of a target, and a folder to damage copies of them in.

    Args:
        target: a name of `TARGETS`.
        folder: an empty one.
    """

    target: str
    folder: Path
    files: dict[Path, bytes] = field(default_factory=dict[Path, bytes])
    states: dict[Path, tuple[int, int]] = field(default_factory=dict[Path, tuple[int, int]])

    def __post_init__(self) -> None:
        with inside(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[self.target].make()
            self.files = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
            self.states = {p: state(p) for p in self.files}

    def lay(self, case: int) -> tuple[random.Random, list[Path]]:
        """Put damaged files in place, in the current folder; which they are."""
        rng = random.Random(f"{self.target} {case}")
        chosen = TARGETS[self.target].damage
        candidates = sorted(p for p in self.files if p.as_posix().startswith(chosen))
        bad = rng.sample(candidates, min(len(candidates), rng.choice((1, 1, 2))))
        self.lay_sound()
        for path in bad:
            path.write_bytes(damaged(path.name, self.files[path], rng))
        return rng, bad

    def lay_sound(self) -> None:
        """Put the files in place as they were made, in the current folder.

        Those that nobody has touched stay where they are: by that a merge knows that an input is the same.
        """
        for entry in sorted(Path().rglob("*"), reverse=True):  # what is in a folder before the folder
            if entry.is_dir() and not entry.is_symlink():
                with suppress(OSError):  # something is to stay in it
                    entry.rmdir()
            elif entry not in self.files or state(entry) != self.states[entry]:
                entry.unlink()
        for path, raw in self.files.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)
                self.states[path] = state(path)

    def warm_up(self) -> None:
        """Do with sound files what is done with damaged ones: what that imports is none of their time."""
        with inside(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for choice in (1, 2):  # a merge and a plan
                self.lay_sound()
                TARGETS[self.target].act(random.Random(choice))

    def run(self, case: int) -> str:
        """What became of a case: "read" or what the target says, or the kind of MeldError.

        Raises:
            BaseException: whatever else came out; that is a finding.
        """
        with inside(self.folder), deadline(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rng, _ = self.lay(case)
            try:
                found = TARGETS[self.target].act(rng)
            except MeldError as e:
                assert len(str(e)) < 20_000  # noqa: PT017 - that it raises is not demanded
                str(e).encode()
                return type(e).__name__
        return found if isinstance(found, str) else "read"


def state(path: Path) -> tuple[int, int]:
    """What changes when anybody does something to a file."""
    status = path.lstat()
    return status.st_ino, status.st_ctime_ns


@contextmanager
def inside(folder: Path) -> Generator[None]:
    """The folder as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def deadline(seconds: float) -> Generator[None]:
    """A TimeoutError in the block when it takes longer; only in the main thread.

    Seconds of processors count, for other programs may need those, and twelve times as many of the clock.
    """

    def late(signum: int, frame: object) -> None:
        del signum, frame
        raise TimeoutError(f"not done after {seconds} s")

    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, 12 * seconds),
    )
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, length in timers:
        signal.setitimer(timer, length)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextmanager
def bounded_memory(more: int = MEMORY) -> Generator[None]:
    """A MemoryError in the block when the process takes so many bytes more than it has, on Linux."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = 0
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcomes(counts: Mapping[str, int]) -> str:
    """Counts in words, for a table."""
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.items(), key=lambda pair: -pair[1]))
