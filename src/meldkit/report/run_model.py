"""Loading one model and letting it read and write: all that a smoke test wants of transformers."""

from __future__ import annotations

import gc
import math
import re
import tempfile
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import DTYPES, Checkpoint, open_model
from meldkit.errors import MeldError, NotSupportedError, RunError
from meldkit.options import MergeOptions
from meldkit.recipe import ModelRef
from meldkit.report.passages import PASSAGES
from meldkit.vocab import FILES

#: Tokens that a model sees at once; the memory for its answers grows with them and its vocabulary.
_WINDOW = 256
#: Tokens of the beginning of each passage that are continued: as many of each, so that nothing is padded.
_PROMPT = 16
#: Tokens of a continuation at most.
_CONTINUATION = 64
#: Words in a row that count as a repetition when they come again: seq-rep-4 of arXiv:1908.04319.
_GRAM = 4
#: Weight files as transformers looks for them.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_GENERATORS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model did with the passages.

    Attributes:
        loss: by passage, the sum of -log p of its tokens in nats; NaN if the model computes NaN.
        num_tokens: by passage, how many tokens that were.
        tokens: by passage, its tokens.
        tops: by passage, what the model finds likeliest in the place of each token but the first.
        repetition: of greedy continuations, the share of 4-grams that were there before: 0 to 1.
        continuations: by passage.
        embeddings: of an encoder, by passage: a vector of length 1. Encoders have nothing of the above.
        made_up: names of weights that transformers found nowhere and drew at random.
    """

    loss: Mapping[str, float]
    num_tokens: Mapping[str, int]
    tokens: Mapping[str, Sequence[str]]
    tops: Mapping[str, Sequence[str]]
    repetition: float
    continuations: Mapping[str, str]
    embeddings: Mapping[str, Sequence[float]]
    made_up: tuple[str, ...]


def kind_of(config: Mapping[str, Any]) -> str:
    """What can be done with a model: "generator", "multimodal" or "encoder".

    Raises:
        NotSupportedError: nothing.
    """
    names: object = config.get("architectures")
    name = str(cast("list[Any]", names)[0]) if isinstance(names, list) and names else ""
    if not name:
        raise NotSupportedError("its config.json names no architecture, so it cannot be run")
    if name.endswith(_GENERATORS):
        return "generator"
    if config.get("is_encoder_decoder"):
        raise NotSupportedError(f"{name} is an encoder-decoder, which a smoke test does not run")
    return "multimodal" if name.endswith("ForConditionalGeneration") else "encoder"


@contextmanager
def as_folder(ref: ModelRef, work: Path, options: MergeOptions) -> Generator[Path]:
    """A folder that transformers loads: the model's own, or one that is made of it and taken away again.

    Args:
        ref: any model that a recipe may name.
        work: where there is room for one model.
        options: where downloads are kept, and whether code is trusted.
    """
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    checkpoint = open_model(ref, cache=cache)
    if _loads_as_it_is(checkpoint):
        yield checkpoint.folder
        return
    from meldkit.api import merge

    try:
        room = tempfile.TemporaryDirectory(dir=work, prefix=".meldkit-smoke-")
    except OSError as e:
        raise RunError(
            f"transformers does not load '{ref}' as it is stored, and there can be no copy in {work}: "
            f"{e.strerror}",
            hint="the copy is taken away again; make the folder writable",
        ) from e
    with room as made:
        recipe = {"merge_method": "passthrough", "models": [{"model": ref.to_value()}]}
        yield merge(recipe, Path(made) / "model", replace(options, copy_tokenizer=True)).path


def _loads_as_it_is(checkpoint: Checkpoint) -> bool:
    # A file of another name, transformers would not take.
    stored = all(_WEIGHTS.fullmatch(file.name) for file in checkpoint.files())
    return stored and not checkpoint.adapters and all(map(checkpoint.plain, checkpoint))


def read(folder: Path, device: str, *, trust_remote_code: bool = False) -> Reading:
    """Load a model, let it read the passages and continue their beginnings; nothing of it stays in memory.

    Args:
        folder: of the model.
        device: where it computes, such as "cpu" or "cuda".
        trust_remote_code: run code in the folder.

    Raises:
        NotSupportedError: it is of a kind that cannot be run.
        RunError: transformers cannot load or run it, or there is not enough memory.
    """
    import torch

    checkpoint = open_model(ModelRef(str(folder)))
    kind = kind_of(checkpoint.config)
    if not any(path.name.startswith(FILES) for path in folder.iterdir()):
        raise NotSupportedError("it has no tokenizer")
    dtype = computing_dtype(checkpoint, device)
    try:
        with silence(), torch.inference_mode():
            model, tokenizer, made_up = _load(folder, kind, dtype, device, trust_remote_code)
            return (
                _encode(model, tokenizer, made_up) if kind == "encoder" else _read(model, tokenizer, made_up)
            )
    except MeldError:
        raise
    except Exception as e:  # models of strangers raise whatever they like
        reason = next(iter(str(e).strip().splitlines()), "")
        raise RunError(f"transformers cannot run it: {type(e).__name__}: {reason}") from e
    finally:
        gc.collect()


def computing_dtype(checkpoint: Checkpoint, device: str) -> Any:
    """The type to compute in: as stored on an accelerator; on a CPU float32 if there is the memory for it.

    Raises:
        RunError: there is not enough memory for any.
    """
    import torch

    numel = sum(info.numel for info in checkpoint.values())
    stored = max(checkpoint.values(), key=lambda info: info.numel).dtype
    if device != "cpu":
        return getattr(torch, DTYPES[stored].torch) if stored in ("BF16", "F16") else torch.float32
    free = _free_memory()
    # A tenth more for what is computed.
    for dtype in (torch.float32, torch.bfloat16):
        needed = 1.1 * numel * dtype.itemsize
        if free is None or needed < free:
            return dtype
    raise RunError(
        f"it needs {1.1 * 2 * numel / 1e9:.1f} GB of memory to be run, {(free or 0) / 1e9:.1f} GB are free"
    )


def _free_memory() -> int | None:
    """Bytes; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return None


@contextmanager
def silence() -> Generator[None]:
    """What transformers says while loading is about its own matters."""
    from transformers.utils import logging

    log: Any = logging
    level = log.get_verbosity()
    bars = log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _load(
    folder: Path, kind: str, dtype: Any, device: str, trust_remote_code: bool
) -> tuple[Any, Any, tuple[str, ...]]:
    import transformers

    library: Any = transformers
    auto = {
        "generator": "AutoModelForCausalLM",
        "multimodal": "AutoModelForImageTextToText",
        "encoder": "AutoModel",
    }
    # Renamed in version 5.
    named = "dtype" if int(library.__version__.partition(".")[0]) >= 5 else "torch_dtype"
    settings = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    tokenizer = library.AutoTokenizer.from_pretrained(str(folder), **settings)
    model, loading = getattr(library, auto[kind]).from_pretrained(
        str(folder), output_loading_info=True, **{named: dtype}, **settings
    )
    # Encoders are loaded without their heads, and those may bring a pooler that was never stored.
    missing = [] if kind == "encoder" else [*loading["missing_keys"]]
    return model.to(device).eval(), tokenizer, tuple(sorted(missing))


def _read(model: Any, tokenizer: Any, made_up: tuple[str, ...]) -> Reading:
    loss: dict[str, float] = {}
    num_tokens: dict[str, int] = {}
    tokens: dict[str, list[str]] = {}
    tops: dict[str, list[str]] = {}
    prompts: list[list[int]] = []
    for name, text in PASSAGES.items():
        ids: list[int] = tokenizer(text)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
        loss[name], best = _score(model, ids)
        num_tokens[name] = len(ids) - 1
        tokens[name] = tokenizer.convert_ids_to_tokens(ids)
        tops[name] = tokenizer.convert_ids_to_tokens(best)
        prompts.append(ids[:_PROMPT])
    written = _continue(model, tokenizer, [p[: min(map(len, prompts))] for p in prompts])
    return Reading(
        loss=loss,
        num_tokens=num_tokens,
        tokens=tokens,
        tops=tops,
        repetition=sum(map(repetition, written)) / len(written),
        continuations={name: tokenizer.decode(ids) for name, ids in zip(PASSAGES, written, strict=True)},
        embeddings={},
        made_up=made_up,
    )


def _positions(model: Any) -> int:
    """Tokens that the model has positions for, at most `_WINDOW`."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(_WINDOW, known) if isinstance(known, int) and known > 1 else _WINDOW


def _score(model: Any, ids: list[int]) -> tuple[float, list[int]]:
    """The sum of -log p over all tokens but the first, and what the model finds likeliest in their place."""
    import torch

    total, best = 0.0, list[int]()
    size = _positions(model)
    # Windows share a token, so that each but the very first is predicted once.
    for start in range(0, len(ids) - 1, size - 1):
        window = torch.tensor([ids[start : start + size]], device=model.device)
        logits = model(input_ids=window).logits[0, :-1].float()
        if not torch.isfinite(logits).all():
            total = math.nan
        total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
        best += logits.argmax(-1).tolist()
    return total, best


def _continue(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[list[int]]:
    """What the model writes after each prompt, always taking the likeliest token."""
    import torch
    from transformers import GenerationConfig

    ends: object = model.generation_config.eos_token_id
    ends = cast("list[int]", ends) if isinstance(ends, list) else [] if ends is None else [ends]
    ids = torch.tensor(prompts, device=model.device)
    num_new = max(1, min(_CONTINUATION, _positions(model) - ids.shape[1]))
    padding = next((n for n in (tokenizer.pad_token_id, *ends) if n is not None), 0)
    # Not the model's own settings: what they do against repetition is not to be measured.
    settings: Any = GenerationConfig(
        max_new_tokens=num_new,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=padding,
    )
    model.generation_config = settings
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    result: list[list[int]] = []
    for row in written[:, ids.shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        result.append(row[:end])
    return result


def repetition(tokens: Sequence[object]) -> float:
    """The share of 4-grams that were there before: 0 if none was, near 1 if one phrase is all there is."""
    grams = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _encode(model: Any, tokenizer: Any, made_up: tuple[str, ...]) -> Reading:
    """The mean of the last hidden states over each sentence."""
    import torch

    embeddings: dict[str, list[float]] = {}
    for name, text in PASSAGES.items():
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=_positions(model) - 2)
        states = model(**{key: value.to(model.device) for key, value in batch.items()}).last_hidden_state[0]
        embeddings[name] = torch.nn.functional.normalize(states.float().mean(0), dim=0).tolist()
    return Reading({}, {}, {}, {}, 0.0, {}, embeddings, made_up)
