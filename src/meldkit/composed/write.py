"""The plan that writes a model that was put together from tensors of others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from meldkit.checkpoint import Checkpoint, TensorInfo
from meldkit.errors import NotSupportedError
from meldkit.options import MergeOptions
from meldkit.plan import Composed, Plan, Tool, build_plan
from meldkit.recipe import ModelRef, Module, Recipe, Slice, Source


def plan_of(made: Composed, tool: Tool, options: MergeOptions, *, dtype: str | None = None) -> Plan:
    """The plan that writes a model as it was put together.

    Args:
        made: the model; nothing of it is changed.
        tool: that has put it together.
        options: as for `merge`.
        dtype: of the output, as torch calls it; None keeps that of each tensor.

    Raises:
        MeldError: as for `plan`.
    """
    if not options.safe_serialization:
        raise NotSupportedError(
            "not supported: only safetensors files are written", hint="leave out --no-safe-serialization"
        )
    ref = ModelRef(made.label)
    module = Module(None, (Slice((Source(ref),)),), from_models=True)
    recipe = Recipe("passthrough", (module,), dtype=dtype)
    built = build_plan(
        recipe,
        lambda _: made,
        shard_size=options.shard_bytes(),
        allow_crimes=options.allow_crimes,
        trust_remote_code=options.trust_remote_code,
        copy_tokenizer=options.copy_tokenizer,
        seed=options.random_seed or 0,
    )
    return replace(built, tool=tool)


def plan_of_adapter(
    tensors: Mapping[str, TensorInfo],
    settings: Mapping[str, Any],
    inputs: Sequence[Checkpoint],
    tool: Tool,
    options: MergeOptions,
    *,
    content: object = (),
    warnings: Sequence[str] = (),
    tokenizer: Path | None = None,
) -> Plan:
    """The plan that writes an adapter in PEFT's format.

    Args:
        tensors: of the adapter, by name.
        settings: adapter_config.json.
        inputs: what it is made of.
        tool: that has put it together.
        options: as for `merge`.
        content: what the tensors depend on besides inputs and settings.
        warnings: what the user should look at.
        tokenizer: folder of one that the adapter brings along, for tokens that its model lacks.
    """
    text = json.dumps(settings, indent=2) + "\n"
    known = (content, text, [model.fingerprint for model in inputs], list(tensors))
    made = Composed(
        label="adapter",
        # Nothing that lies beside the models belongs beside an adapter.
        folder=Path("/nonexistent"),
        tensors=tensors,
        config={},
        tokenizer=tokenizer,
        adapters=(),
        fingerprint=sha256(repr(known).encode()).hexdigest(),
        warnings=tuple(warnings),
        inputs=tuple(inputs),
    )
    one_file = replace(options, out_shard_size="1000B", copy_tokenizer=False)
    named = replace(tool, files={**tool.files, "adapter_config.json": text})
    plan = plan_of(made, named, one_file)
    return replace(plan, files=tuple(replace(file, name="adapter_model.safetensors") for file in plan.files))
