"""What files of a model folder are called, and which of them belong to the model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import cast

from meldkit.checkpoint import Checkpoint
from meldkit.checkpoint.json_file import read_settings
from meldkit.errors import CheckpointError
from meldkit.plan import Plan
from meldkit.vocab import FILES

RECIPE = "meldkit.yml"
RECORD = "meldkit.json"
#: For people, who may edit it.
CARD = "README.md"
#: Kinds of files beside the weights that belong to a model: tokenizer, templates, processors, custom code.
_KINDS = (".json", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".bpe", ".merges", ".spm", ".codes")
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


def size_of(plan: Plan) -> int:
    """Bytes of what is about to be written: weights, and the donor's files beside them as they are now."""
    donor = plan.checkpoints[plan.donor]
    if donor.gguf is not None:
        return plan.bytes_to_write
    beside = carried(donor.folder, copy_tokenizer=True, merged=donor.parts)
    return plan.bytes_to_write + sum(p.stat().st_size for p in beside)


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
        data = json.loads(read_settings(donor / _PARTS))
    except (CheckpointError, ValueError, RecursionError):
        return set()
    entries = cast("list[object]", data) if isinstance(data, list) else []
    paths = [cast("dict[str, object]", e).get("path") for e in entries if isinstance(e, dict)]
    return {PurePath(p).parts[0] for p in paths if isinstance(p, str) and PurePath(p).parts}


def settings_files(checkpoint: Checkpoint) -> list[dict[str, Path]]:
    """The files beside the weights of an input, by name: those of its folder, and of each adapter's.

    Of a file that is a model by itself there are none.
    """
    folder = checkpoint.folder
    own: dict[str, Path] = {}
    if checkpoint.gguf is None and (folder / "config.json").is_file():
        files = (folder / "config.json", *carried(folder, copy_tokenizer=True, merged=checkpoint.parts))
        own = {p.relative_to(folder).as_posix(): p for p in files if not p.name.endswith(_WEIGHTS)}
    return [own, *(_settings_of_adapter(adapter.folder) for adapter in checkpoint.adapters)]


def _settings_of_adapter(folder: Path) -> dict[str, Path]:
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    return {n: path for n, path in files.items() if describes_model(n) and not describes_weights(n)}
