"""The chat template that a recipe asks for, checked against the tokens of the output."""

from __future__ import annotations

from collections.abc import Mapping

from meldkit.errors import RecipeError
from meldkit.plan.pieces import Model, at
from meldkit.plan.tables import SHOWN
from meldkit.recipe import ModelRef, Recipe
from meldkit.vocab import (
    AUTO,
    ChatTemplates,
    OutputTokenizer,
    check_template,
    choose_templates,
    ends_of,
    missing_tokens,
    read_templates,
    read_tokenizer,
    special_tokens,
    tokenizer_files,
)


def check_setting(recipe: Recipe) -> None:
    """Raise RecipeError for a `chat_template` that cannot be, as far as the recipe alone tells."""
    if recipe.chat_template is not None and recipe.chat_template.strip() != AUTO:
        choose_templates(recipe.chat_template, [("", ChatTemplates())], 0, _where(recipe))


def _where(recipe: Recipe) -> str:
    return recipe.lines.get("chat_template", recipe.origin)


def settle_templates(
    recipe: Recipe,
    models: Mapping[ModelRef, Model],
    donor: Model,
    output: OutputTokenizer | None,
    notes: list[str],
    warnings: list[str],
) -> tuple[ChatTemplates | None, tuple[int, ...]]:
    """The templates of the output, and the tokens that end a turn in them but no text of the donor's.

    Args:
        recipe: its `chat_template` decides.
        models, donor: the input models, and whose tokenizer the output gets if nothing else is said.
        output: the tokenizer of the output; None for the donor's.
        notes, warnings: are added to.

    Returns:
        None for the templates that come with the tokenizer; and numbers of tokens of the output.

    Raises:
        RecipeError: there is no such template, or it does not work.
        CheckpointError: a model's templates cannot be read.
    """
    setting = recipe.chat_template
    if setting is None:
        return None, ()
    found: list[tuple[str, ChatTemplates]] = []
    ends: list[str | None] = []
    for ref, model in models.items():
        with tokenizer_files(model.checkpoint) as folder:
            found.append((str(ref), read_templates(folder)))
            ends.append(special_tokens(folder).get("eos"))
    where = _where(recipe)
    templates, remarks = choose_templates(setting, found, donor.index, where)
    if templates == ChatTemplates() and output is not None:
        # A tokenizer that belongs to no merged model brings its own, if it has any.
        return None, ()
    notes += remarks
    tokenizer = output.tokenizer if output is not None else read_tokenizer(donor.checkpoint)
    if templates.default is None or tokenizer is None:
        return templates, ()
    if setting.strip() == AUTO:
        # One of the recipe's own is an error; this one a model has as it is.
        try:
            check_template(templates.default, where)
        except RecipeError as e:
            warnings.append(e.message)
    if missing := missing_tokens(templates.default, tokenizer.tokens):
        warnings.append(
            f"{at(where)}the chat template writes {', '.join(missing[:SHOWN])}"
            f"{', …' * (len(missing) > SHOWN)}, which the tokenizer "
            "cuts into pieces, because it has no such token"
        )
    wanted = [end for (_, own), end in zip(found, ends, strict=True) if own is templates] or ends_of(setting)
    own_end = ends[donor.index]
    if output is not None:
        own_end = None if output.gguf else special_tokens(output.folder).get("eos")
    known = (tokenizer.tokens.get(end) for end in wanted if end is not None and end != own_end)
    numbers = [number for number in known if number is not None]
    return templates, tuple(dict.fromkeys(numbers))
