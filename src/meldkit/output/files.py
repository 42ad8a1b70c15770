"""Everything in the output folder that is not weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, cast

from meldkit.checkpoint import write_json
from meldkit.checkpoint.gguf import write_generation_config, write_tokenizer
from meldkit.engine import Device
from meldkit.errors import RunError
from meldkit.output.card import model_card
from meldkit.output.record import CARD, RECIPE, RECORD, record
from meldkit.output.sums import Sum
from meldkit.plan import Plan
from meldkit.vocab import (
    FILES,
    copy_tokenizer,
    write_generation_settings,
    write_output_tokenizer,
    write_templates,
)

#: Kinds of files beside the weights that belong to a model: tokenizer, templates, processors, custom code.
_KINDS = (".json", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".bpe", ".merges")
#: Vocabularies, too, and what their authors wrote for people.
_CARRIED = (*_KINDS, ".txt")
#: Who passes a model on must pass these on too.
_LICENSES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")
#: Written anew.
_OWN = ("config.json", CARD)
#: Says something about the donor that is not true of the merge, and that no reader looks at.
_ABOUT_TRAINING = (
    "training_args",
    "trainer_state",
    "all_results",
    "train_results",
    "eval_results",
    "checkpoint-",
)
#: The same, and readers do.
_NOT_TRUE = (
    "adapter_",
    # Inputs that were quantised are not any more.
    "hf_quant_config",
    "quantize_config",
    "quant_config",
)
_SETTINGS = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    # Readers look for the base model that it names, and take that instead.
    "adapter_config.json",
)
#: Folders of which readers take what is in them.
FOLDERS = ("additional_chat_templates", "custom_generate")
#: Lists the parts of a sentence-transformers model, with their folders.
_PARTS = "modules.json"


def write_side_files(
    folder: Path, plan: Plan, *, with_tokenizer: bool = True, card: bool = True, name: str, version: str
) -> None:
    """Write configuration, index, tokenizer, card and recipe.

    Args:
        folder: where the weight files are.
        plan: what was merged.
        with_tokenizer: write tokenizer and chat template.
        card: write README.md.
        name: of the new model, for the card.
        version: of meldkit, for the card.

    Raises:
        RunError: a file cannot be read or written.
    """
    with _unwritten(folder):
        _write_side_files(folder, plan, with_tokenizer=with_tokenizer)
        if card:
            (folder / CARD).write_text(model_card(plan, name, version), "utf-8")


def write_record(
    folder: Path,
    plan: Plan,
    version: str,
    options: Mapping[str, Any],
    sums: Mapping[str, Sum],
    devices: Sequence[Device],
) -> None:
    """Write the record, which tells of every other file; see `meldkit.output.record`.

    Raises:
        RunError: a file cannot be read or written.
    """
    with _unwritten(folder):
        write_json(folder / RECORD, record(plan, version, options, sums, devices, folder))


@contextmanager
def _unwritten(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as e:
        raise RunError(
            f"cannot copy or write {e.filename or folder}: {e.strerror}",
            hint="the weights are done; run the same command again to continue",
        ) from e


def _write_side_files(folder: Path, plan: Plan, *, with_tokenizer: bool) -> None:
    donor = plan.checkpoints[plan.donor]
    as_it_is = with_tokenizer and plan.tokenizer is None
    if donor.gguf is not None:
        write_generation_config(donor.gguf, folder)
        if as_it_is:
            write_tokenizer(donor.gguf, folder)
    else:
        for path in carried(donor.folder, copy_tokenizer=as_it_is, merged=donor.parts):
            target = folder / path.relative_to(donor.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if as_it_is and donor.tokenizer is not None:
        copy_tokenizer(donor.tokenizer, folder)
    if with_tokenizer and plan.tokenizer is not None:
        write_output_tokenizer(plan.tokenizer, folder)
    if with_tokenizer and plan.templates is not None:
        write_templates(plan.templates, folder)
    write_generation_settings(plan.tokenizer, plan.ends, plan.config or {}, folder)
    if plan.config is not None:
        write_json(folder / "config.json", plan.config)
    for part in dict.fromkeys(file.folder for file in plan.files):
        files = [index for index, file in enumerate(plan.files) if file.folder == part]
        if len(files) > 1:
            write_json(folder / part / "model.safetensors.index.json", _index(plan, files))
    (folder / RECIPE).write_text(plan.recipe.to_yaml(), "utf-8")


def describes_weights(name: str) -> bool:
    """Whether readers of a model folder take weights from a file of that name."""
    return name.endswith((".safetensors", ".bin", ".gguf", ".index.json"))


def describes_model(name: str) -> bool:
    """Whether readers of a model folder look for a file of that name."""
    return describes_weights(name) or name in (*_SETTINGS, _PARTS) or name.startswith(FILES)


def may_be_read(path: PurePath) -> bool:
    """Whether a reader of a model folder may take a file for the model's because it is there.

    Libraries look for dozens of names, and each version for more: weights count, and whatever is of a kind
    that models' settings, tokenizers, templates and code are of.

    Args:
        path: relative to the model's folder.
    """
    if path.name.endswith(_WEIGHTS) or path.name.startswith(FILES) or path.parts[0] in FOLDERS:
        return True
    return path.name.endswith(_KINDS) and not any(part.startswith(_ABOUT_TRAINING) for part in path.parts)


def carried(donor: Path, *, copy_tokenizer: bool, merged: Collection[str] = ()) -> Iterator[Path]:
    """Files of the donor's folder that go with the merged weights.

    Subfolders come along unless they hold weights, which are then other models or formats; those that
    modules.json names are parts of this one and come along whole.

    Args:
        donor: the folder; without a config.json it is no model's, and nothing in it belongs to the weights.
        copy_tokenizer: whether tokenizer and chat template are wanted.
        merged: parts whose weights are written anew.
    """
    if not (donor / "config.json").is_file():
        return
    files = sorted(path for path in donor.rglob("*") if path.is_file())
    relative = {path: path.relative_to(donor) for path in files}
    parts = _parts(donor)
    foreign = {r.parts[0] for r in relative.values() if len(r.parts) > 1 and r.name.endswith(_WEIGHTS)}
    for path, inside in relative.items():
        top = inside.parts[0]
        whole = len(inside.parts) > 1 and top in parts
        if whole and inside.parent.as_posix() in merged and describes_weights(inside.name):
            continue
        wanted = copy_tokenizer or not top.startswith(FILES)
        if whole or (wanted and top not in foreign and _belongs(inside)):
            yield path


def _belongs(path: PurePath) -> bool:
    """Whether a file, given relative to the donor's folder, is one of the kinds that are carried."""
    if any(part.startswith((".", *_ABOUT_TRAINING, *_NOT_TRUE)) for part in path.parts):
        return False
    name = path.name
    if name.endswith(".index.json") or name in (RECIPE, RECORD) or str(path) in _OWN:
        return False
    return name.endswith(_CARRIED) or name.upper().startswith(_LICENSES)


def _parts(donor: Path) -> set[str]:
    """Top-level folders that modules.json names."""
    try:
        data = json.loads((donor / _PARTS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return set()
    entries = cast("list[object]", data) if isinstance(data, list) else []
    paths = [cast("dict[str, object]", e).get("path") for e in entries if isinstance(e, dict)]
    return {PurePath(p).parts[0] for p in paths if isinstance(p, str) and PurePath(p).parts}


def _index(plan: Plan, files: Collection[int]) -> dict[str, Any]:
    """The index of some weight files, which lie in the same folder."""
    stored = [(part, plan.files[part.file]) for job in plan.jobs for part in job.stored if part.file in files]
    return {
        "metadata": {"total_size": sum(part.nbytes for part, _ in stored)},
        "weight_map": {
            part.name.removeprefix(file.folder): file.name.removeprefix(file.folder) for part, file in stored
        },
    }
