"""Chat templates: whose the output gets, whether they work, and the files that hold them.

A chat template is a Jinja text that turns a conversation into the text a model continues. A model may have
several: the default one and named ones (tool_use, rag, …). Presets are written from the public descriptions
of the formats:

    alpaca   ### Instruction / ### Response, https://github.com/tatsu-lab/stanford_alpaca
    chatml   <|im_start|>role … <|im_end|>, https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
    exaone   [|user|] … [|assistant|] … [|endofturn|], https://huggingface.co/LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct
    llama3   <|start_header_id|>role<|end_header_id|> … <|eot_id|>, https://github.com/meta-llama/llama3
    mistral  [INST] … [/INST] of Mistral 7B Instruct 0.1 and 0.2, https://github.com/mistralai/mistral-common
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint.json_file import read_json, read_settings, shown, write_json
from meldkit.errors import CheckpointError, RecipeError, did_you_mean
from meldkit.vocab.jinja import at, check_template, is_unicode

AUTO = "auto"
PRESETS = ("alpaca", "chatml", "exaone", "llama3", "mistral")

#: What ends a turn in a preset, where that is a token of its own.
_ENDS = {"chatml": "<|im_end|>", "exaone": "[|endofturn|]", "llama3": "<|eot_id|>"}

_CONFIG = "tokenizer_config.json"
_FILE = "chat_template.jinja"
_MORE = "additional_chat_templates"
#: Older processors (of images and the like) keep their template in one of these, and never in a tokenizer's.
_LEGACY = "chat_template.json"
_PROCESSOR = "processor_config.json"
#: A folder with one of these is loaded with a processor, which looks for templates in files only.
_PROCESSORS = (_PROCESSOR, "preprocessor_config.json")
_KEY = "chat_template"
_DEFAULT = "default"
#: Of all templates of a model; the longest of real ones have some 20 kB.
_MAX_BYTES = 1_000_000
_HINT = "repair the file or download it again"


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """The chat templates of a model.

    Attributes:
        default: the one that is used when none is named.
        named: those for special uses, by name.
    """

    default: str | None = None
    named: Mapping[str, str] = field(default_factory=dict[str, str])


def read_templates(folder: Path) -> ChatTemplates:
    """The chat templates of a model folder, as transformers would load them with its tokenizer.

    Files of their own count for more than tokenizer_config.json. Where the tokenizer has none, the
    processor's count.

    Raises:
        CheckpointError: a file is damaged.
    """
    files = {path.stem: path for path in _named_files(folder)}
    if (folder / _FILE).is_file():
        files = {_DEFAULT: folder / _FILE, **files}
    if files:
        return _templates(_read_texts(files, folder), folder)
    for name in (_CONFIG, _PROCESSOR, _LEGACY):
        path = folder / name
        if path.is_file() and (raw := read_json(path).get(_KEY)) is not None:
            return _templates(raw, path)
    return ChatTemplates()


def _named_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / _MORE).glob("*.jinja") if path.is_file())


def _read_texts(files: Mapping[str, Path], folder: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    size = 0
    for name, path in files.items():
        raw = read_settings(path, _MAX_BYTES, "a chat template")
        size += len(raw)
        if size > _MAX_BYTES:
            raise _too_large(folder)
        try:
            texts[name] = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as e:
            raise CheckpointError(f"{path} is not text in UTF-8 (byte {e.start:,})", hint=_HINT) from e
    return texts


def _too_large(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} has more than {_MAX_BYTES / 1e6:.0f} MB of chat templates", hint=_HINT)


def _templates(raw: object, path: Path) -> ChatTemplates:
    """Templates that are stored as one text, as a mapping, or as a list of names with templates."""
    pairs: list[tuple[object, object]]
    if isinstance(raw, dict):
        pairs = list(cast("dict[object, object]", raw).items())
    elif isinstance(raw, list):
        entries = [
            cast("dict[str, object]", e) if isinstance(e, dict) else {} for e in cast("list[object]", raw)
        ]
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
    else:
        pairs = [(_DEFAULT, raw)]
    named: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise CheckpointError(
                f"{path} has a chat template that is not a text with a name: {shown(name)}, {shown(text)}",
                hint=_HINT,
            )
        # The name becomes that of a file.
        if not name or any(letter in "/\\\0" for letter in name) or not is_unicode(name + text):
            raise CheckpointError(
                f"{path} has a chat template that cannot be stored in a file: {shown(name)}", hint=_HINT
            )
        named[name] = text
    if sum(map(len, named.values())) > _MAX_BYTES:
        raise _too_large(path)
    default = named.pop(_DEFAULT, "")
    return ChatTemplates(default if default.strip() else None, named)


def choose_templates(
    setting: str, models: Sequence[tuple[str, ChatTemplates]], donor: int, where: str
) -> tuple[ChatTemplates, list[str]]:
    """The templates that a recipe's `chat_template` asks for, and notes on what that leads to.

    Args:
        setting: "auto" for the most common default template of the models, the name of a preset, or Jinja
            text.
        models: label and templates of each.
        donor: position of the model whose tokenizer the output gets.
        where: where the recipe says so, for messages; may be empty.

    Raises:
        RecipeError: the setting is none of these, or a template that does not work.
    """
    name = setting.strip()
    if name == AUTO:
        return _most_common(models, donor, where)
    if name in PRESETS:
        text = preset(name)
    elif "{" in setting:
        text = setting
        check_template(text, where)
    else:
        known = (AUTO, *PRESETS)
        near = did_you_mean(name, known)
        raise RecipeError(
            f"{at(where)}there is no chat_template named {shown(name)}",
            hint=f"{near + ' ' if near.startswith('did') else ''}names: {', '.join(known)}; anything else "
            "must be the text of a Jinja template, which has {{ … }} or {% … %} in it",
        )
    label, own = models[donor]
    if not own.named:
        return ChatTemplates(text), []
    left_out = ", ".join(own.named)
    note = f"the other chat templates of '{label}' ({left_out}) are left out: they may be of another format"
    return ChatTemplates(text), [at(where) + note]


def preset(name: str) -> str:
    """The template of a preset."""
    return (Path(__file__).parent / "presets" / f"{name}.jinja").read_text("utf-8").removesuffix("\n")


def ends_of(name: str) -> list[str]:
    """The tokens that end a turn in a preset, besides the tokenizer's own end of a text."""
    return [_ENDS[name.strip()]] if name.strip() in _ENDS else []


def _most_common(
    models: Sequence[tuple[str, ChatTemplates]], donor: int, where: str
) -> tuple[ChatTemplates, list[str]]:
    # Space around a template is left over from how it was stored.
    texts = {i: t.default.strip() for i, (_, t) in enumerate(models) if t.default is not None}
    if not texts:
        return models[donor][1], [f"{at(where)}no model has a chat template, so the output gets none"]
    votes = Counter(texts.values())
    most = max(votes.values())
    order = (donor, *texts) if donor in texts else texts
    label, chosen = models[next(i for i in order if votes[texts[i]] == most)]
    if len(votes) == 1:
        return chosen, []
    share = f"{most} of {len(texts)} models have" if most > 1 else "all models have different ones"
    reason = f"which {share}" if most > 1 else share
    return chosen, [f"{at(where)}the chat template is that of '{label}': {reason}"]


def write_templates(templates: ChatTemplates, folder: Path) -> None:
    """Give a folder with tokenizer files these chat templates instead of those it has.

    They are stored where the folder has its own, be it tokenizer_config.json, files of their own, or both,
    else in tokenizer_config.json, which every version of transformers reads. Where a processor is, files are
    written in any case: it reads nothing else. No copy of an old template is left anywhere.

    Args:
        templates: may be empty; then the folder has none afterwards.
        folder: with the files of the tokenizer, of which only the templates are changed.

    Raises:
        CheckpointError: a file that is there is damaged.
        OSError: a file cannot be written.
    """
    config = _read_if_there(folder / _CONFIG)
    processor = _read_if_there(folder / _PROCESSOR)
    more = _named_files(folder)
    stale = [path for path in (folder / _FILE, folder / _LEGACY, *more) if path.is_file()]
    in_files = bool(stale) or any((folder / name).is_file() for name in _PROCESSORS)
    in_config = config.get(_KEY) is not None or not in_files
    in_legacy = (folder / _LEGACY).is_file() and templates.default is not None and not templates.named

    for path in stale:
        path.unlink()
    if more and not any((folder / _MORE).iterdir()):
        (folder / _MORE).rmdir()
    if processor.pop(_KEY, None) is not None:
        write_json(folder / _PROCESSOR, processor)
    if in_legacy:  # next to named templates no processor would load
        write_json(folder / _LEGACY, {_KEY: templates.default})
    content = _as_stored(templates) if in_config else None
    if content != config.get(_KEY):
        rest = {key: value for key, value in config.items() if key != _KEY}
        write_json(folder / _CONFIG, rest if content is None else config | {_KEY: content})
    if in_files:
        files = {folder / _MORE / f"{name}.jinja": text for name, text in templates.named.items()}
        if templates.default is not None:
            files[folder / _FILE] = templates.default
        for path, text in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8", newline="\n")


def _as_stored(templates: ChatTemplates) -> str | list[dict[str, str]] | None:
    """As tokenizer_config.json has them."""
    if not templates.named:
        return templates.default
    default = {} if templates.default is None else {_DEFAULT: templates.default}
    return [{"name": name, "template": text} for name, text in (default | dict(templates.named)).items()]


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
