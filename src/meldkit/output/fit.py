"""Whether a configuration belongs to weights: what both of them tell, compared.

What a setting means depends on the architecture. So a disagreement counts against an output only where
the model that its configuration comes from agreed with itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from meldkit.errors import MismatchError
from meldkit.layout import Layout, Stack, infer_layout
from meldkit.plan import Plan
from meldkit.plan.pieces import NOT_TOKENS

Shapes = Mapping[str, tuple[int, ...]]

_WIDTHS = ("hidden_size", "n_embd", "d_model")
#: Projections of a layer, and what their heads are counted by.
_PROJECTIONS = {
    "q_proj.weight": "num_attention_heads",
    "k_proj.weight": "num_key_value_heads",
    "v_proj.weight": "num_key_value_heads",
}
#: Rows behind those that the configuration speaks of which an embedding may have: Mllama has 8.
_MAX_SURPLUS = 256


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that config.json and the weights both tell.

    Attributes:
        agrees: whether they tell the same.
        text: what each of them tells.
    """

    agrees: bool
    text: str


def check_fit(plan: Plan, config: Mapping[str, Any], shapes: Shapes) -> int:
    """Check an output's configuration against the shapes of its tensors.

    Args:
        plan: names the model that the configuration comes from.
        config: of the output.
        shapes: of its tensors, by name.

    Returns:
        How many things were compared and agree.

    Raises:
        MismatchError: they do not belong together.
    """
    donor = plan.checkpoints[plan.donor]
    # The donor's tables may already have the rows of the output's vocabulary, which its own config has not.
    surplus = 0 if plan.tokenizer is None else _MAX_SURPLUS
    found = facts(config, shapes, surplus)
    wrong = {key: fact for key, fact in found.items() if not fact.agrees}
    if wrong:
        own = facts(donor.config, {name: info.shape for name, info in donor.items()})
        forgiven = {key for key in wrong if key in own and not own[key].agrees}
        if plan.tokenizer is not None:
            forgiven.discard("vocabulary")
        for key, fact in wrong.items():
            if key not in forgiven:
                raise MismatchError(
                    f"the output's config.json and weights contradict each other: {fact.text}",
                    hint=f"the configuration comes from '{donor.label}'; with another base_model it may fit",
                )
    return len(found) - len(wrong)


def facts(config: Mapping[str, Any], shapes: Shapes, surplus: int = 0) -> dict[str, Fact]:
    """What a configuration and the shapes of tensors both tell, by what it is about.

    Args:
        config: config.json.
        shapes: of tensors, by name.
        surplus: so many more rows than tokens an embedding may have.
    """
    layout = infer_layout(shapes, config)
    text = _text_section(config)
    tables = [
        shapes[name]
        for name, place in layout.places.items()
        if place.role == "embedding" and place.stack is None and not NOT_TOKENS.search(name)
    ]
    tables = [shape for shape in tables if len(shape) == 2]
    result: dict[str, Fact] = {}
    sizes = list(dict.fromkeys(_vocab_sizes(config)))
    if sizes and tables:
        rows = list(dict.fromkeys(shape[0] for shape in tables))
        agree = any(0 <= n - size <= surplus for n in rows for size in sizes)
        result["vocabulary"] = Fact(
            agree, f"vocab_size is {_either(sizes)}, the embedding has {_either(rows)} rows"
        )
    width = next((text[key] for key in _WIDTHS if type(text.get(key)) is int), None)
    if width is not None and tables:
        columns = list(dict.fromkeys(shape[1] for shape in tables))
        result["width"] = Fact(
            width in columns, f"hidden_size is {width}, the embedding has {_either(columns)} columns"
        )
    stack = layout.text_stack
    if stack is None:
        return result
    if layout.text_depths:
        depths = sorted(layout.text_depths)
        result["depth"] = Fact(
            stack.num_blocks in depths,
            f"it speaks of {_either(depths)} layers, the weights have {stack.num_blocks} ({stack.prefix}*)",
        )
    result.update(_layers(text, shapes, layout, stack, width))
    return result


def _layers(
    text: Mapping[str, Any], shapes: Shapes, layout: Layout, stack: Stack, width: int | None
) -> Iterator[tuple[str, Fact]]:
    """Facts about the tensors of layers: equal ones are alike, and attention has the heads that it should."""
    leaves: dict[str, dict[tuple[int, ...], str]] = {}
    for name, place in layout.places.items():
        if place.stack is stack:
            leaves.setdefault(place.leaf, {}).setdefault(shapes[name], name)
    for leaf, found in leaves.items():
        (shape, first), *others = found.items()
        said = "".join(f", '{name}' {list(other)}" for other, name in others[:1])
        yield (
            f"layers {leaf}",
            Fact(not others, f"its layers are alike, but '{first}' is {list(shape)}{said}"),
        )
        counted = next((key for end, key in _PROJECTIONS.items() if leaf.endswith(end)), None)
        heads = text.get("num_attention_heads")
        if counted is None or type(heads) is not int or heads < 1:
            continue
        size = text.get("head_dim") or (width // heads if width else None)
        number = text.get(counted) or heads
        if type(size) is int and type(number) is int:
            yield (
                f"heads {leaf}",
                Fact(
                    all(rows == number * size for rows, *_ in found),
                    f"{number} heads of {size} are {number * size} rows, '{first}' has {shape[0]}",
                ),
            )


def _text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return cast("Mapping[str, Any]", inner) if isinstance(inner, dict) else config


def _vocab_sizes(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if key.startswith("vocab_size") and type(value) is int:
            yield value
        elif isinstance(value, dict):
            yield from _vocab_sizes(cast("Mapping[str, Any]", value))


def _either(numbers: list[int]) -> str:
    return " or ".join(f"{n:,}" for n in numbers)
