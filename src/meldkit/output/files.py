"""Everything in the output folder that is not weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meldkit.output.card import model_card
from meldkit.plan import Plan

#: Kinds of files beside the weights that belong to a model: tokenizer, templates, processors, custom code.
_CARRIED = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".bpe", ".merges"}
#: Written anew, or saying something about the donor that is not true of the merge.
_OWN = {"config.json", "README.md"}
_ABOUT_TRAINING = (
    "training_args",
    "trainer_state",
    "all_results",
    "train_results",
    "eval_results",
    "adapter_",
)
_TOKENIZER = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "merges",
    "spiece",
    "sentencepiece",
    "tekken",
    "chat_template",
    "additional_chat_templates",
)
RECIPE = "meldkit.yml"
RECORD = "meldkit.json"


def write_side_files(
    folder: Path, plan: Plan, *, copy_tokenizer: bool = True, card: bool = True, version: str
) -> None:
    """Write configuration, index, tokenizer, card, recipe and record.

    Args:
        folder: where the weight files are.
        plan: what was merged.
        copy_tokenizer: carry the donor's tokenizer and chat template.
        card: write README.md.
        version: of meldkit, for the record.
    """
    donor = plan.checkpoints[plan.donor].folder
    for path in _carried(donor, copy_tokenizer=copy_tokenizer):
        target = folder / path.relative_to(donor)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if plan.config is not None:
        _write_json(folder / "config.json", plan.config)
    if len(plan.files) > 1:
        _write_json(folder / "model.safetensors.index.json", _index(plan))
    (folder / RECIPE).write_text(plan.recipe.to_yaml(), "utf-8")
    _write_json(folder / RECORD, record(plan, version))
    if card:
        (folder / "README.md").write_text(model_card(plan, folder.parent.name, version), "utf-8")


def record(plan: Plan, version: str) -> dict[str, Any]:
    """What is needed to make the same weights again."""
    return {
        "meldkit": version,
        "plan": plan.digest(),
        "seed": plan.seed,
        "models": {c.label: c.fingerprint for c in plan.checkpoints},
    }


def _carried(donor: Path, *, copy_tokenizer: bool) -> Iterator[Path]:
    """Files of the donor's folder, and of its subfolders that hold no weights of their own, to carry over."""
    for path in sorted(donor.rglob("*")):
        relative = path.relative_to(donor)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        name = relative.name
        if path.suffix not in _CARRIED or (len(relative.parts) == 1 and name in _OWN):
            continue
        if name.endswith(".index.json") or name.startswith(_ABOUT_TRAINING) or name in (RECIPE, RECORD):
            continue
        if not copy_tokenizer and relative.parts[0].startswith(_TOKENIZER):
            continue
        yield path


def _index(plan: Plan) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(job.nbytes for job in plan.jobs)},
        "weight_map": {job.name: plan.files[job.file].name for job in plan.jobs},
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
