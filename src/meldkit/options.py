"""How a merge is run, as opposed to what it computes. One declaration for Python and the command line.

Names, meanings and defaults are mergekit's, so that its command lines and notebooks work unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from meldkit.errors import RecipeError

T = TypeVar("T")


def _option(default: T, doc: str, *, idle: str = "", flags: tuple[str, ...] = ()) -> T:
    """A field with its documentation.

    Args:
        default: value when not given; its type is the option's.
        doc: one sentence for `--help`.
        idle: why the option changes nothing here; empty if it does.
        flags: spellings on the command line besides the one made from the name.
    """
    return field(default=default, metadata={"doc": doc, "idle": idle, "flags": flags})


#: As many as large machines have processors; each takes some memory of its own.
_MAX_THREADS = 1024

_STREAMS = "weights are streamed and never collected in memory"
_STAGED = "weights reach GPUs through memory that these read by themselves"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """Options of `meldkit merge` and `run_merge`; attributes are documented where they are declared."""

    allow_crimes: bool = _option(
        False, "Merge models of differently named architectures if tensors of equal names have equal shapes."
    )
    allow_crop: bool = _option(
        False, "Merge embeddings row by row although tokenizers differ, cut to the rows that all models have."
    )
    unsafe_truncate_embeddings: bool = _option(False, "The same as --allow-crop.")
    trust_remote_code: bool = _option(
        False, "Let a model's own code read its tokenizer where there is no tokenizer.json."
    )
    transformers_cache: str | None = _option(None, "Where downloaded models are kept.")
    lora_merge_cache: str | None = _option(
        None, "Where merged LoRA models are kept.", idle="adapters are added while reading; nothing is stored"
    )
    lora_merge_dtype: str | None = _option(
        None, "Type in which LoRA adapters are applied.", idle="adapters are applied in float32"
    )
    random_seed: int | None = _option(None, "Seed of methods that draw random masks; 0 if not given.")
    cuda: bool = _option(False, "Merge, and run --smoke, on the first GPU of CUDA.")
    device: str | None = _option(
        None,
        "Merge, and run --smoke, on this device: cpu, cuda, cuda:1, xpu, mps, or auto for any.",
    )
    low_cpu_memory: bool = _option(False, "Keep intermediate values on the GPU.", idle=_STREAMS)
    lazy_unpickle: bool = _option(False, "Load pickled weights lazily.", idle=_STREAMS)
    read_to_gpu: bool = _option(False, "Read weights straight to the GPU.", idle=_STAGED)
    multi_gpu: bool = _option(False, "Merge on all GPUs of the kind that is asked for, else of CUDA.")
    gpu_rich: bool = _option(False, "The same as --cuda --multi-gpu.")
    num_threads: int | None = _option(
        None, "Worker threads; if not given, two more than processors, or two per GPU.", flags=("-j",)
    )
    async_write: bool = _option(False, "Write while computing.", idle="writing always overlaps computing")
    write_threads: int = _option(1, "Threads that write.", idle="two threads always write")
    out_shard_size: str | int = _option(
        "5B", "Most bytes of tensors per weight file, such as 500M, 2GB or 5B (5 · 10⁹)."
    )
    copy_tokenizer: bool = _option(True, "Copy tokenizer and chat template of the base model.")
    clone_tensors: bool = _option(False, "Clone tensors before saving.", idle=_STREAMS)
    write_model_card: bool = _option(True, "Write README.md with recipe and models.")
    safe_serialization: bool = _option(True, "Write safetensors files.")
    allow_nonfinite: bool = _option(False, "Let NaN and Inf in the inputs through.")
    plugin: tuple[str, ...] = _option((), "Python file that declares a merge method; may be repeated.")
    quiet: bool = _option(False, "Print nothing but errors.")
    verbosity: int = _option(0, "Print more; may be repeated.", flags=("-v",))
    overwrite: bool = _option(False, "Replace what is in the output folder.")

    def __post_init__(self) -> None:
        for name in ("num_threads", "write_threads"):
            number = getattr(self, name)
            if number is not None and not 1 <= number <= _MAX_THREADS:
                raise RecipeError(f"{name} is {number}", hint=f"it must be from 1 to {_MAX_THREADS}")

    def shard_bytes(self) -> int:
        """`out_shard_size` in bytes."""
        return parse_size(self.out_shard_size)

    def wanted_device(self) -> str:
        """The device that is asked for, as PyTorch spells it, or "auto"."""
        return self.device or ("cuda" if self.cuda or self.multi_gpu or self.gpu_rich else "cpu")

    def all_devices(self) -> bool:
        """Whether all devices of that kind are asked for."""
        return self.multi_gpu or self.gpu_rich

    def idle(self) -> list[str]:
        """A sentence for each option that was set but changes nothing."""
        return [
            f"--{f.name.replace('_', '-')} changes nothing: {f.metadata['idle']}"
            for f in fields(self)
            if f.metadata["idle"] and getattr(self, f.name) != f.default
        ]


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTB]?|[KMGT]I)(?:B?)\s*", re.I | re.ASCII)


def parse_size(text: Any) -> int:
    """A number of bytes from text such as "5B", "500M", "2GB" or "1.5GiB".

    Raises:
        RecipeError: not a size, or less than one byte.
    """
    match = _SIZE.fullmatch(str(text))
    size = float(match[1]) * (_UNITS | _BINARY)[match[2].upper()] if match else 0.0
    if not 1 <= size < 2**63:
        raise RecipeError(f"{text!r} is not a size", hint="write it like 500M, 2GB or 5B")
    return int(size)
