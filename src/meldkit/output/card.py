"""The model card: what was merged from what and how, without asking the network anything."""

from __future__ import annotations

from pathlib import Path

import yaml

from meldkit.plan import Plan


def model_card(plan: Plan, name: str, version: str) -> str:
    """README.md of the output, in the Hub's format: YAML front matter, then Markdown.

    Args:
        plan: what was merged.
        name: title of the card.
        version: of meldkit.
    """
    front = {
        "base_model": [c.label for c in plan.checkpoints if _is_hub_id(c.label)],
        "library_name": "transformers",
        "tags": ["merge", "meldkit"],
    }
    front_matter = yaml.safe_dump({k: v for k, v in front.items() if v}, sort_keys=False).strip()
    method = plan.method
    paper = f" ([paper](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    models = "\n".join(
        f"| `{_cell(c.label)}` | {len(c)} | `{c.fingerprint[:16]}` |" for c in plan.checkpoints
    )
    base = plan.recipe.base_model
    base_line = f" The base model is `{_cell(str(base))}`." if base is not None else ""
    return f"""\
---
{front_matter}
---

# {_cell(name)}

This model was merged from other models with [meldkit](https://pypi.org/project/meldkit/) {version}.

## Method

`{method.name}`{paper}: {method.summary}{base_line}

## Models

| model | tensors | content hash of headers |
|---|---|---|
{models}

## Recipe

```yaml
{plan.recipe.to_yaml().strip()}
```
"""


def _is_hub_id(label: str) -> bool:
    return label.count("/") == 1 and not label.startswith((".", "/", "~")) and not Path(label).exists()


def _cell(text: str) -> str:
    """Text that cannot end a code span, a table cell or a line."""
    return text.replace("`", "'").replace("|", "\\|").replace("\n", " ")
