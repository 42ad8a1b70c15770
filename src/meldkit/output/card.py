"""The model card: what was merged from what and how, without asking the network anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from meldkit.plan import Plan, stored_inputs


def model_card(plan: Plan, name: str, version: str) -> str:
    """README.md of the output, in the Hub's format: YAML front matter, then Markdown.

    Args:
        plan: what was merged.
        name: title of the card.
        version: of meldkit.
    """
    adapter = _adapter(plan)
    front = {
        "base_model": _hub_ids(plan) if adapter is None else _on_hub([adapter]),
        "library_name": "transformers" if adapter is None else "peft",
        "tags": ["merge", "meldkit"],
    }
    front_matter = yaml.safe_dump({k: v for k, v in front.items() if v}, sort_keys=False).strip()
    method = plan.method
    paper = f" ([paper](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    models = "\n".join(
        f"| `{_cell(c.label)}` | {len(c)} | `{c.fingerprint[:16]}` |" for c in stored_inputs(plan)
    )
    base = plan.recipe.base_model
    base_line = f" The base model is `{_cell(str(base))}`." if base is not None else ""
    recipe = (plan.tool.text if plan.tool else plan.recipe.to_yaml()).strip()
    how = f"`{method.name}`{paper}: {method.summary}{base_line}"
    if plan.tool is not None:
        how = f"`meldkit {plan.tool.name}`: {plan.tool.summary}"
    # A fence is closed by as many backticks as opened it.
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe))])
    return f"""\
---
{front_matter}
---

# {_title(name)}

This model was made from other models with [meldkit](https://pypi.org/project/meldkit/) {version}.

## Method

{how}

## Models

| model | tensors | hash of names, shapes and types, not of values |
|---|---|---|
{models}

## Recipe

{fence}yaml
{recipe}
{fence}
"""


def _hub_ids(plan: Plan) -> list[str]:
    """The inputs that are on the Hub, adapters included, once each."""
    return _on_hub(
        p for ref in plan.recipe.stored_models() for p in (ref.path, *(a.path for a in ref.adapters))
    )


def _on_hub(paths: Iterable[str]) -> list[str]:
    return [path for path in dict.fromkeys(paths) if _HUB_ID.fullmatch(path) and not Path(path).exists()]


def _adapter(plan: Plan) -> str | None:
    """The model that the output is an adapter of, "" if it names none; None if it is a model."""
    settings = plan.tool.files.get("adapter_config.json") if plan.tool else None
    return None if settings is None else str(json.loads(settings).get("base_model_name_or_path") or "")


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def _cell(text: str) -> str:
    """Text that cannot end a code span, a table cell or a line."""
    return " ".join(text.replace("`", "'").replace("|", "\\|").split())


def _title(text: str) -> str:
    """Text of which Markdown and HTML make nothing else."""
    return re.sub(r"([\\`*\[\]<>&])", r"\\\1", " ".join(text.split()))
