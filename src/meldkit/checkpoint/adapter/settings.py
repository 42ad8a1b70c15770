"""An adapter's adapter_config.json: which kinds of adapters are refused, and the scale of each product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint.json_file import read_json, shown
from meldkit.errors import CheckpointError, FormatError
from meldkit.expression import ExpressionError, occurs

_SAFETENSORS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
#: Settings under which an adapter is something else than tensors that change tensors, and what to do then.
_OTHER_KINDS = {
    "layer_replication": "build that stack with 'slices:' first, and lay the adapter over the result "
    "after taking layer_replication out of its adapter_config.json",
    "alora_invocation_tokens": "it works from a certain token on only, which no change of weights can do",
    "arrow_config": "it chooses between other adapters for each token, which no change of weights can do",
    "use_qalora": "it adds to groups of quantised weights",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "it changes the base model too",
    "monteclora_config": "it draws random numbers",
}
#: Initialisations that change the base model's weights as well: PEFT repeats them when it loads the adapter.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """What adapter_config.json says.

    Attributes:
        folder: of the adapter.
        values: the file's content.
    """

    folder: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Read the configuration of an adapter that can be laid over a model.

        Raises:
            CheckpointError: missing or damaged file.
            FormatError: another kind of adapter.
        """
        path = folder / "adapter_config.json"
        if folder.is_dir() and not path.exists():
            raise CheckpointError(
                f"adapter {folder} has no adapter_config.json",
                hint="what stands after a '+' must be a LoRA adapter in PEFT's format",
            )
        values = read_json(path)
        kind = str(values.get("peft_type", "LORA")).upper()
        if kind != "LORA":
            raise FormatError(
                f"not supported yet: adapter {folder} is of type {shown(kind)}; only 'LORA' is",
                hint="merge it into its base model with PEFT, and name the result instead",
            )
        used = [key for key in _OTHER_KINDS if values.get(key)]
        if used:
            settings = ", ".join(f"{key} ({shown(values[key])})" for key in used)
            raise FormatError(
                f"not supported yet: adapter {folder} uses {settings}", hint=_OTHER_KINDS[used[0]]
            )
        init = values.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(_CHANGED_BASE):
            raise FormatError(
                f"not supported yet: adapter {folder} has init_lora_weights {shown(init)}, "
                "which changes the base model too",
                hint="save it with PEFT's path_initial_model_for_weight_conversion: "
                "that makes it a plain LoRA",
            )
        return cls(folder, values)

    def token_indices(self, module: str) -> object:
        """What it says about the rows of an embedding that are trained: a list of numbers, if it is right."""
        indices: object = self.values.get("trainable_token_indices")
        if not isinstance(indices, dict):
            return indices
        own = cast("dict[str, object]", indices)
        return next((own[key] for key in own if f".{module}".endswith(f".{key}")), None)

    def names(self, key: str) -> list[str]:
        """A list of names; empty if there is none."""
        value = self.values.get(key)
        return [str(name) for name in cast("list[object]", value)] if isinstance(value, list) else []

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's factors is multiplied by: α / r, or α / √r if rank-stabilised.

        Args:
            module: may have r and α of its own under rank_pattern and alpha_pattern.
            rank: of its factors.

        Raises:
            CheckpointError: r or α is no such number, or not that rank.
        """
        r = self.own("rank_pattern", module, self.values.get("r"))
        alpha = self.own("alpha_pattern", module, self.values.get("lora_alpha"))
        if type(r) is not int or r < 1 or type(alpha) not in (int, float) or not -1e30 < alpha < 1e30:
            raise CheckpointError(
                f"adapter {self.folder}: adapter_config.json gives {shown(module)} the rank {shown(r)} "
                f"and lora_alpha {shown(alpha)}",
                hint="r must be a positive integer and lora_alpha a number",
            )
        if r != rank:
            raise CheckpointError(
                f"adapter {self.folder}: adapter_config.json gives {shown(module)} the rank {r}, "
                f"its lora_A has {rank} rows",
                hint="configuration and weights are of different adapters",
            )
        return alpha / (math.sqrt(r) if self.values.get("use_rslora") else r)

    def own(self, key: str, module: str, default: Any) -> Any:
        """A module's own setting: that of the first pattern that matches the end of its path, as in PEFT."""
        patterns = self.values.get(key)
        if not patterns:
            return default
        if not isinstance(patterns, dict):
            raise CheckpointError(f"adapter {self.folder}: {key} of adapter_config.json is not a mapping")
        for pattern, value in cast("dict[str, Any]", patterns).items():
            try:
                match = occurs(rf"\A(?:(.*\.)?({pattern})$)", module)
            except ExpressionError as e:
                raise CheckpointError(
                    f"adapter {self.folder}: {key} of adapter_config.json has {shown(pattern)}, which {e}"
                ) from None
            if match:
                return value
        return default


def weights_file(folder: Path) -> Path:
    """The file with an adapter's tensors; it may be missing."""
    path, pickled = folder / _SAFETENSORS, folder / _PICKLED
    return pickled if pickled.exists() and not path.exists() else path
