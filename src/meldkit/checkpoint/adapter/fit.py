"""Whether an adapter's factors fit a weight, and which way round."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from meldkit.checkpoint.adapter.settings import Settings
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import TensorInfo
from meldkit.errors import CheckpointError, FormatError, MeldError, MismatchError

#: Models whose layers of these names keep their weight as [in, out].
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
#: Models that keep their experts' weights as [in, out].
_TRANSPOSED_EXPERTS = ("gpt_oss", "openai_privacy_filter", "aria")

#: What to do about an adapter that does not fit, and about one of which a half is missing.
OTHER_BASE_HINT = "check that the adapter was trained on this base model"
HALF_HINT = "download the adapter again, or check how it was written"


class Fit:
    """Checks of one adapter's factors; all raise a `MeldError` that shows the shapes.

    Args:
        settings: the adapter's adapter_config.json.
        model_type: of the model under it.
    """

    def __init__(self, settings: Settings, model_type: str) -> None:
        self._settings = settings
        self._folder = settings.folder
        self._model_type = model_type
        self._transposed_experts: bool | None = None

    def pair(self, path: str, parts: Mapping[str, TensorInfo], kind: str) -> tuple[TensorInfo, TensorInfo]:
        """Both factors, made of numbers.

        Args:
            path: of the module, for messages.
            parts: what the adapter has for it.
            kind: how the names of its factors begin.
        """
        a, b = parts.get(f"{kind}A"), parts.get(f"{kind}B")
        if a is None or b is None:
            raise CheckpointError(
                f"adapter {self._folder} has only {next(iter(parts))} for {shown(path)}", hint=HALF_HINT
            )
        if len(a.shape) < 2 or len(b.shape) < 2 or 0 in a.shape or not (a.floating and b.floating):
            raise CheckpointError(
                f"adapter {self._folder} has other factors than matrices of numbers for {shown(path)}: "
                f"{kind}A {a.dtype} {list(a.shape)}, {kind}B {b.dtype} {list(b.shape)}",
                hint=HALF_HINT,
            )
        return a, b

    def orientation(
        self, name: str, weight: TensorInfo, a: TensorInfo, b: TensorInfo, *, embedding: bool
    ) -> bool:
        """Whether a weight is the transpose of B A."""
        if len(weight.shape) > 2 and len(a.shape) == len(b.shape) == len(weight.shape):
            self._check_convolution(name, weight, a, b)
            return False
        straight, transposed = _fits(weight.shape, a, b)
        if embedding:
            straight = False
        else:
            conv1d = self._model_type in _CONV1D_MODELS and name.split(".")[-2] in _CONV1D_LAYERS
            # PEFT's setting is that of the layer it met last, so the model counts for more.
            transposed = transposed and (conv1d or bool(self._settings.values.get("fan_in_fan_out")))
        if not (straight or transposed):
            raise self.unfit(name, _factors(a, b), weight.shape)
        return transposed

    def _check_convolution(self, name: str, weight: TensorInfo, a: TensorInfo, b: TensorInfo) -> None:
        if a.shape[2:] == weight.shape[2:] and a.shape[1] > weight.shape[1]:
            raise FormatError(
                f"not supported yet: adapter {self._folder} changes {shown(name)}, "
                "which is a convolution in groups"
            )
        fits = a.shape[1:] == weight.shape[1:] and b.shape[:2] == (weight.shape[0], a.shape[0])
        if not fits or any(size != 1 for size in b.shape[2:]):
            raise self.unfit(name, _factors(a, b), weight.shape)

    def expert_orientation(self, path: str, shape: tuple[int, ...], a: TensorInfo, b: TensorInfo) -> bool:
        """Whether each expert's matrix is the transpose of its B A.

        PEFT before 0.19 took every parameter for [experts, in, out]. Of square matrices the shape does not
        tell; they are as the others that came before.
        """
        straight, transposed = _fits(shape[1:], a, b)
        if not (straight or transposed) or a.shape[0] % shape[0]:
            raise self.unfit(path, _factors(a, b), shape)
        if straight != transposed:
            self._transposed_experts = transposed
            return transposed
        if self._transposed_experts is not None:
            return self._transposed_experts
        version = re.match(r"(\d+)\.(\d+)", str(self._settings.values.get("peft_version")))
        old = version is None or (int(version[1]), int(version[2])) < (0, 19)
        return old or self._model_type in _TRANSPOSED_EXPERTS

    def unfit(self, name: str, what: str, shape: Sequence[int]) -> MeldError:
        """The error about something of a wrong shape."""
        return MismatchError(
            f"adapter {self._folder} does not fit {shown(name)}: {what} against {list(shape)}",
            hint=OTHER_BASE_HINT,
        )


def _fits(shape: Sequence[int], a: TensorInfo, b: TensorInfo) -> tuple[bool, bool]:
    """Whether a matrix of this shape is B A, and whether it is (B A)ᵀ."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return False, False
    product = [b.shape[0], a.shape[1]]
    return list(shape) == product, list(shape) == product[::-1]


def _factors(a: TensorInfo, b: TensorInfo) -> str:
    return f"lora_A {list(a.shape)} and lora_B {list(b.shape)}"
