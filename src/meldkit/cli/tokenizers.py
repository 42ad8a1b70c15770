"""meldkit tokenizers: how the vocabularies of models differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli.arguments import Model
from meldkit.cli.display import table, text_of

if TYPE_CHECKING:
    from meldkit.report import PairDifference, TokenizerComparison, TokenizerSummary


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, required=True, type=Model())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
@click.option("--trust-remote-code", is_flag=True, help="Let a model's own code read its tokenizer.")
@click.option("--verbose", "-v", is_flag=True, help="Show more tokens of each kind.")
def command(
    models: tuple[str, ...],
    as_json: bool,
    transformers_cache: str | None,
    trust_remote_code: bool,
    verbose: bool,
) -> None:
    """Compare the tokenizers of MODELS: tokens, numbers, special tokens, chat templates.

    MODELS are what a recipe may name, or folders that hold a tokenizer only.
    """
    from meldkit.report import compare_tokenizers

    cache = Path(transformers_cache) if transformers_cache else None
    comparison = compare_tokenizers(models, cache=cache, trust_remote_code=trust_remote_code)
    if as_json:
        click.echo(json.dumps(data(comparison), indent=2, ensure_ascii=False))
    else:
        click.echo(text_of(describe(comparison, shown=20 if verbose else 3)))


def describe(comparison: TokenizerComparison, *, shown: int = 3) -> Iterator[str]:
    """The comparison in words and tables."""
    rows = [("", "kind", "tokens", "added", "largest", "rows", "chat template")]
    yield from table([*rows, *(_row(place, model) for place, model in enumerate(comparison.models))])
    for place, model in enumerate(comparison.models):
        yield f"  {place}: {model.label}"
    for pair in comparison.differences:
        yield ""
        yield from _pair(pair, shown)


def _row(place: int, model: TokenizerSummary) -> tuple[str, ...]:
    tokenizer, templates = model.tokenizer, model.templates
    names = ["default"] * (templates.default is not None) + list(templates.named)
    return (
        str(place),
        tokenizer.kind,
        f"{len(tokenizer.tokens):,}",
        f"{len(tokenizer.added):,}",
        f"{tokenizer.size - 1:,}",
        "-" if model.rows is None else f"{model.rows:,}",
        ", ".join(names) or "none",
    )


def _pair(pair: PairDifference, shown: int) -> Iterator[str]:
    first, second = str(pair.first), str(pair.second)
    tokens = pair.tokens
    verdict = f"{tokens.shared:,} tokens in both" if tokens else "the same tokens with the same numbers"
    yield f"{first} and {second}: {verdict}"
    for sentence in tokens.words(first, second, shown):
        yield f"  {sentence}"
    for role, (one, other) in pair.special.items():
        yield f"  {role} token: {one or 'none'} and {other or 'none'}"
    if not pair.same_template:
        yield "  different chat templates"
    if tokens:
        yield "  to merge them: 'tokenizer: {source: union}', or '{source: base}', in the recipe"


def data(comparison: TokenizerComparison) -> dict[str, Any]:
    """The comparison as JSON has it."""
    return {
        "models": [
            {
                "model": model.label,
                "kind": model.tokenizer.kind,
                "tokens": len(model.tokenizer.tokens),
                "added": len(model.tokenizer.added),
                "largest_id": model.tokenizer.size - 1,
                "embedding_rows": model.rows,
                "special": dict(model.special),
                "chat_template": model.templates.default,
                "named_templates": dict(model.templates.named),
            }
            for model in comparison.models
        ],
        "differences": [
            {
                "first": pair.first,
                "second": pair.second,
                "same": not pair.tokens,
                "shared": pair.tokens.shared,
                "moved": {token: list(ids) for token, ids in pair.tokens.moved.items()},
                "only_first": dict(pair.tokens.only_first),
                "only_second": dict(pair.tokens.only_second),
                "special": {role: list(both) for role, both in pair.special.items()},
                "same_template": pair.same_template,
            }
            for pair in comparison.differences
        ],
    }
