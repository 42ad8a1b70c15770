"""Writes docs/formats.md: stores small models in every format, reads and merges them, and compares.

With --check, it says whether the page is stale and writes nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}

import format_refusals  # noqa: E402 - the variables must be set, and the tests be found
import format_samples as samples  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from format_samples import Row, Sample, Values  # noqa: E402

import meldkit.checkpoint  # noqa: E402
import tiny  # noqa: E402
from meldkit import merge  # noqa: E402
from meldkit.checkpoint import open_model  # noqa: E402
from meldkit.errors import MeldError  # noqa: E402
from meldkit.recipe import ModelRef  # noqa: E402

PAGE = ROOT / "docs" / "formats.md"
#: Errors that float32 arithmetic explains, relative to a tensor's largest element.
TOLERANCE = 1e-6

#: Where fsync costs nothing.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes:
        title, text: what comes before it.
        columns: of each row, without the result.
        rows: what is measured.
        exact: whether every machine rounds alike what is done, so that 0 can be promised.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    exact: bool = True


_HEAD = """\
<!-- written by scripts/formats.py -->
# Formats

What meldkit reads, and how exactly. Every row of the tables was run: small models are stored in the format,
mostly by the library that defines it, and merged, each alone and with a second model. The result is
compared with what safetensors, torch, gguf or peft read, or with the format's formula in double precision.

The last column is the largest error of any element, relative to the largest element of its tensor: *0*
means the same numbers bit for bit (of a mean, the exact one rounded once), *< 10⁻⁶* the rounding of float32
arithmetic.

Nothing is converted on disk first: values are decoded tile by tile while they are merged. The output is
safetensors, and not quantised unless the recipe asks for it.
"""
_SECTIONS = (
    Section(
        "safetensors",
        "A model is a folder, a file, or on the hub; this holds for all formats below.",
        ("what",),
        samples.safetensors_rows,
    ),
    Section(
        "Files of torch.save",
        """\
`.bin`, `.pt`, `.pth`, `.tar` and `.ckpt` files, alone or in a folder as transformers writes it. Such files
are programs that could do anything, and none of it is run: what describes more than tensors, numbers and
plain containers is refused. `meldkit pytorch` merges them without a config.json, and writes such files
too.""",
        ("what",),
        samples.pickled_rows,
    ),
    Section(
        "Quantised checkpoints",
        """\
Codes with scales are merged as the numbers that they stand for. Their tensors get the type that config.json
names (`dtype`, else bfloat16). Scales of activations and caches are left out: they were measured on one of
the models. `out_dtype: float8_e4m3fn` in the recipe writes FP8 again, in blocks of 128 × 128 with scales;
experts that are stored joined stay wide.""",
        ("format", "`quant_method`"),
        samples.quantised_rows,
    ),
    Section(
        "GGUF",
        """\
A `.gguf` file is a whole model: config.json, tokenizer and generation settings of the output come from it.
Tensors get their Hugging Face names, and the order of rows and the values that they had before llama.cpp's
conversion. Name the file (`./model.Q4_K_M.gguf`, `org/name/model.Q8_0.gguf`), or a folder that has just
one. A split model (`model-00001-of-00003.gguf`) is read whole, whichever part is named. An `mmproj-….gguf`
beside it, which makes its input of images or sounds, is left out. Rare kinds of numbers are decoded by the
gguf package.""",
        ("numbers", "blocks"),
        samples.kind_rows,
    ),
    Section(
        "Architectures of GGUF files",
        "Other formats need no list; see [architectures.md](architectures.md).",
        ("architecture", "`model_type`"),
        samples.architecture_rows,
    ),
    Section(
        "Adapters",
        """\
LoRA adapters in PEFT's format, written `base+adapter`, are added to each tile while it is read. The
reference is PEFT's `merge_and_unload`. Where only one of an embedding and the head that is tied to it
changes, both are stored, so that the merged model computes what the model with the adapter does.""",
        ("what",),
        samples.adapter_rows,
        exact=False,
    ),
    Section(
        "Models that are stored in different ways",
        """\
The output has names, shapes and types of the base (else the first) model, unless the recipe names a type.""",
        ("what",),
        samples.mixed_rows,
    ),
)
_REFUSED = """\
## Refused

Before anything is written, with a message that names the model and the tensor or setting.
"""
_ENCODINGS = """\
## In the code

A tensor is an array of numbers in a file, or has one of these
[encodings](../src/meldkit/checkpoint/tensor.py), which may lie over each other; the rows above use them
all.
"""


# ---- measuring


def merged(folder: Path, used: set[str], *models: str | Path) -> Values:
    """The mean of models in float32, or one model; `used` gets the encodings that were read."""
    method = "linear" if len(models) > 1 else "passthrough"
    parameters = {"weight": 0.5} if len(models) > 1 else {}
    entries = [{"model": str(model)} for model in models]
    recipe = {"merge_method": method, "dtype": "float32", "parameters": parameters, "models": entries}
    used.update(parts(merge(recipe, folder).plan.checkpoints))
    return tiny.tensors(folder)


def difference(found: Values, expected: Values) -> float:
    """The largest error, relative to the largest element of its tensor."""
    if found.keys() != expected.keys():
        raise AssertionError(f"other tensors: {sorted(found.keys() ^ expected.keys())[:5]}")
    largest = 0.0
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise AssertionError(f"{name}: {found[name].shape} against {tensor.shape}")
        if tensor.numel():
            error = (found[name].double() - tensor.double()).abs().max().item()
            largest = max(largest, error / (tensor.double().abs().max().item() or 1.0))
    return largest


def deviation(sample: Sample, folder: Path, used: set[str]) -> float:
    """The largest error of a model as it is, and of its mean with another one."""
    alone = merged(folder / "alone", used, sample.model)
    other, values = sample.other, sample.other_values
    if not other:
        config = folder / "alone" / "config.json"
        values = {n: torch.randn(t.shape) if t.is_floating_point() else t for n, t in sample.values.items()}
        settings = json.loads(config.read_text()) if config.exists() else None
        other = tiny.stored(folder / "other", dict(values), settings)
    mean = {
        name: ((t.double() + values[name].double()) / 2).float() if t.is_floating_point() else t
        for name, t in sample.values.items()
    }
    both = merged(folder / "both", used, sample.model, other)
    return max(difference(alone, sample.values), difference(both, mean))


def parts(value: object) -> Iterator[str]:
    """The classes that a description of tensors is made of."""
    if isinstance(value, tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from parts(item)
    elif dataclasses.is_dataclass(value):
        yield type(value).__name__
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))


def encodings() -> dict[str, type]:
    """Every encoding of tensors, and every change that adapters make to them."""
    found: dict[str, type] = {}
    package = meldkit.checkpoint
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if dataclasses.is_dataclass(kind) and kind.__module__ == module.name:
                reads = hasattr(kind, "open") and "info" in inspect.signature(kind.open).parameters
                if reads or hasattr(kind, "over"):
                    found[name] = kind
    return found


# ---- the page


def row(section: Section, made: Row, used: set[str]) -> str:
    """A row of the page; whatever goes wrong is a result."""
    largest = 0.0
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        try:
            for number, sample in enumerate(made.make(folder)):
                largest = max(largest, deviation(sample, folder / f"merged {number}", used))
        except Exception as e:  # noqa: BLE001
            result = f"**fails**: {type(e).__name__}: {e}".splitlines()[0]
        else:
            bounded = "< 10⁻⁶" if largest < TOLERANCE else f"**{largest:.1e}**"
            result = "0" if section.exact and largest == 0 else bounded
    if "--check" not in sys.argv or "**" in result:
        print(f"{largest:.1e}", *made.cells, result, sep=" | ", flush=True)
    return f"| {' | '.join(made.cells)} | {result} |"


def refusals() -> Iterator[str]:
    """Rows about what is not read; the same thing to do is said once."""
    rows: dict[tuple[str, str], list[str]] = {}
    for refused in format_refusals.refusals():
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            try:
                open_model(ModelRef.parse(str(refused.make(Path(folder)))))
                hint = "**is read**"
            except MeldError as e:
                hint = e.hint or "**no hint**"
        rows.setdefault((refused.group, hint), []).append(refused.what)
    for (group, hint), names in rows.items():
        yield f"| {group} {', '.join(names)} | {hint} |".replace("|  ", "| ")


def page() -> str:
    """The documentation page."""
    lines = [_HEAD]
    used: set[str] = set()
    for section in _SECTIONS:
        lines += [f"## {section.title}", "", section.text, ""]
        lines += [f"| {' | '.join(section.columns)} | error |", "|---" * len(section.columns) + "|---|"]
        lines += [row(section, made, used) for made in section.rows()]
        lines.append("")
    lines += [_REFUSED, "| what | what to do, or why |", "|---|---|", *refusals()]
    lines += ["", _ENCODINGS, "| class | what it is |", "|---|---|"]
    for name, kind in sorted(encodings().items()):
        summary = (inspect.getdoc(kind) or "").splitlines()[0]
        path = Path(inspect.getfile(kind)).relative_to(ROOT)
        lines.append(f"| [{name}](../{path}) | {summary if name in used else '**not used above**'} |")
    return "\n".join([*lines, ""])


def main() -> int:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, "utf-8")
    elif text != PAGE.read_text("utf-8"):
        print("docs/formats.md is stale; run scripts/formats.py")
        return 1
    return "**" in text


if __name__ == "__main__":
    sys.exit(main())
