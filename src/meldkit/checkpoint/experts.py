"""The experts of a mixture-of-experts layer, as another model of the same family stores them.

    one by one      mlp.experts.3.gate_proj.weight [I, H], .up_proj.weight [I, H], .down_proj.weight [H, I];
                    w1, w3, w2 or fc1, fc3, fc2 in other families
    fused           mlp.experts.gate_up_proj [E, 2·I, H], gates first, and mlp.experts.down_proj [E, H, I];
                    input_linear and output_linear in Granite
    stacked         moe.gate_proj.weight [E, I, H], moe.up_proj.weight, moe.down_proj.weight
    transposed      fused or stacked, with the last two sizes exchanged

E experts, I sizes between their two layers, H of the model. Files on the Hub mostly have experts one by one,
what transformers holds in memory (and writes with `save_original_format=False`) is fused.

Source: `transformers.conversion_mapping` (transformers 5), which loads all of these into the same modules.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.rearranged import Matrix, joined, transposed
from meldkit.checkpoint.renamed import alike
from meldkit.checkpoint.tensor import TensorInfo
from meldkit.errors import CheckpointError

_PLACE = r"(?P<block>(?:.*\.)?\d+\.)(?P<module>(?:[A-Za-z_]\w*\.)*?)"
_SINGLE = re.compile(_PLACE + r"experts\.(?P<expert>0|[1-9]\d{0,5})\.(?P<leaf>\w+)\.weight")
_ALL = re.compile(_PLACE + r"(?P<experts>experts\.)?(?P<leaf>\w+?)(?P<ending>\.weight)?")
_BIAS = re.compile(_PLACE + r"experts\.(?:\d+\.\w+\.bias|(?:gate_up|gate|up|down)_proj_bias)")

#: Matrices of one expert, in the order in which they stand in a fused tensor.
Roles = tuple[str, ...]
_GATED: Roles = ("gate", "up")
#: What the matrices of single experts are called, in one family of models or another.
_SINGLES: tuple[dict[str, str], ...] = (
    {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    {"gate": "w1", "up": "w3", "down": "w2"},
    {"gate": "fc1", "up": "fc3", "down": "fc2"},
)
#: Leaf of a name → what it holds; of single experts, and of all together.
_LEAVES: dict[bool, dict[str, Roles]] = {
    True: {
        **{leaf: (role,) for names in _SINGLES for role, leaf in names.items()},
        "gate_up_proj": _GATED,
    },
    False: {
        "gate_proj": ("gate",),
        "up_proj": ("up",),
        "down_proj": ("down",),
        "gate_up_proj": _GATED,
        "input_linear": _GATED,
        "output_linear": ("down",),
        "fc1": _GATED,
        "fc2": ("down",),
    },
}
#: What the experts of a layer consist of: with a gate, and without.
_COMPLETE = ({"gate", "up", "down"}, {"up", "down"})
#: Names of one and the same tensor beside the experts.
_SYNONYMS = (
    ("gate.weight", "router.weight", "router.layer.weight"),
    ("e_score_correction_bias", "gate.e_score_correction_bias"),
)


def as_stored_by(
    tensors: Mapping[str, TensorInfo], reference: Mapping[str, TensorInfo]
) -> Mapping[str, TensorInfo]:
    """A model's tensors, with the experts under the names and in the shapes that another model has them in.

    Values do not change, and nothing is read. What the reference has no experts for stays as it is.

    Args:
        tensors: the model's.
        reference: the other model's.

    Returns:
        The same mapping if there is nothing to do.

    Raises:
        CheckpointError: an expert is missing, so that they cannot be joined.
    """
    if alike(tensors, reference):
        return tensors
    ours, wanted = _collect(tensors), _forms(reference)
    if not ours or not wanted:
        return tensors
    modules: dict[str, set[str]] = {}
    for layer in ours:
        modules.setdefault(layer.stack, set()).add(layer.module)
    names = {_numberless(name) for name in reference}
    ordered = sorted(tensors)
    changed: dict[str, dict[str, TensorInfo]] = {}
    for layer in ours:
        options = wanted.get(layer.stack, {})
        module = layer.module
        if module not in options and len(options) == 1 and len(modules[layer.stack]) == 1:
            module = next(iter(options))
        form = options.get(module)
        if form is None or layer.form is None or set(layer.form.roles) != set(form.roles):
            continue
        if module != layer.module or form != layer.form:
            stored = layer.stored(form, module)
            sources = list(layer.tensors.values())
            changed |= {info.name: {} for info in sources} | {sources[0].name: stored}
        for name in _beginning_with(layer.prefix, ordered):
            other = _renamed(name.removeprefix(layer.prefix), layer.block + module, names)
            if name not in changed and other is not None and other != name:
                changed[name] = {other: replace(tensors[name], name=other)}
    if not changed:
        return tensors
    result: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        result |= changed.get(name, {name: info})
    return result


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The experts of one layer, however they are stored.

    Attributes:
        block: what names of the layer begin with, such as "model.layers.3.".
        module: what follows, such as "mlp.".
        experts: by what they hold ("gate", "up", "down"), the matrices [out, in] of each expert.
    """

    block: str
    module: str
    experts: tuple[Mapping[str, TensorInfo], ...]


def expert_layers(tensors: Mapping[str, TensorInfo]) -> list[ExpertLayer]:
    """The layers of a model that have experts, in the order of its tensors.

    Raises:
        CheckpointError: an expert is missing, or they are stored in a way that is not known.
    """
    found: list[ExpertLayer] = []
    for layer in _collect(tensors):
        if layer.form is None:
            raise CheckpointError(
                f"the experts of {shown(layer.prefix.rstrip('.'))} are stored in a way that is not known",
                hint="experts with biases and incomplete ones are not taken apart",
            )
        upright = {key: layer.upright(info) for key, info in layer.tensors.items()}
        experts = tuple(
            {
                role: joined(
                    f"{layer.prefix}experts.{number}.{role}", [layer.matrix(upright, role, number)], ()
                )
                for role in layer.form.roles
            }
            for number in range(layer.num_experts())
        )
        found.append(ExpertLayer(layer.block, layer.module, experts))
    return found


def one_by_one(tensors: Mapping[str, TensorInfo], modules: Iterable[str]) -> Mapping[str, TensorInfo]:
    """A model's tensors, with its experts taken apart if modules of single experts are spoken of.

    `as_stored_by` puts them together again: what has not changed meanwhile is as it was.

    Args:
        tensors: the model's.
        modules: names of modules, some of which may be those of single experts.

    Returns:
        The same mapping if there is nothing to do.
    """
    found = [match for module in modules if (match := _SINGLE.fullmatch(f"{module}.weight"))]
    leaves = {match["leaf"] for match in found}
    names = next((names for names in _SINGLES if leaves <= set(names.values())), None)
    if not found or names is None:
        return tensors
    module = found[0]["module"]
    reference: dict[str, TensorInfo] = {}
    for layer in _collect(tensors):
        if layer.form is not None and not layer.form.single:
            some = next(iter(layer.tensors.values()))
            for role in layer.form.roles:
                name = f"{layer.block}{module}experts.0.{names[role]}.weight"
                reference[name] = replace(some, name=name, shape=some.shape[1:])
    return as_stored_by(tensors, reference)


def _beginning_with(prefix: str, ordered: Sequence[str]) -> Iterator[str]:
    for name in ordered[bisect_left(ordered, prefix) :]:
        if not name.startswith(prefix):
            return
        yield name


def _renamed(leaf: str, prefix: str, names: set[str]) -> str | None:
    """The name that the reference has for a tensor beside the experts; None if it has none."""
    synonyms = next((s for s in _SYNONYMS if leaf in s), ())
    for candidate in (leaf, *synonyms):
        if _numberless(prefix + candidate) in names:
            return prefix + candidate
    return None


def _numberless(name: str) -> str:
    """A name for all layers of a stack; of another depth they may be."""
    return re.sub(r"\d+", "*", name)


@dataclass(frozen=True, slots=True)
class _Form:
    """How the experts of a layer are stored.

    Attributes:
        single: one by one.
        leaves: for the matrices of one tensor, what stands behind the module and the number of the expert.
        transposed: the last two sizes are exchanged.
    """

    single: bool
    leaves: tuple[tuple[Roles, str], ...]
    transposed: bool

    @property
    def roles(self) -> Roles:
        return tuple(role for roles, _ in self.leaves for role in roles)


@dataclass(slots=True)
class _Layer:
    """The experts of one layer.

    Attributes:
        block: what names of the layer begin with, such as "model.layers.3.".
        module: what follows, such as "mlp.".
        tensors: by what they hold, and the number of the expert; None for all of them.
        leaves: as in a `_Form`.
        form: None if it is not one that is known.
    """

    block: str
    module: str
    tensors: dict[tuple[Roles, int | None], TensorInfo] = field(
        default_factory=dict[tuple[Roles, int | None], TensorInfo]
    )
    leaves: dict[Roles, str] = field(default_factory=dict[Roles, str])
    form: _Form | None = None

    @property
    def stack(self) -> str:
        return _numberless(self.block)

    @property
    def prefix(self) -> str:
        return self.block + self.module

    def stored(self, form: _Form, module: str) -> dict[str, TensorInfo]:
        """The same experts in another form."""
        prefix = self.block + module
        count = self.num_experts()
        upright = {key: self.upright(info) for key, info in self.tensors.items()}
        result: dict[str, TensorInfo] = {}
        for roles, leaf in form.leaves:
            if form.single:
                for expert in range(count):
                    matrices = [self.matrix(upright, role, expert) for role in roles]
                    name = f"{prefix}experts.{expert}.{leaf}"
                    result[name] = joined(name, matrices, ())
            else:
                matrices = [self.matrix(upright, role, e) for e in range(count) for role in roles]
                name = prefix + leaf
                result[name] = joined(name, matrices, (count,))
                if form.transposed:
                    result[name] = transposed(result[name])
        return result

    def num_experts(self) -> int:
        roles = next(iter(self.leaves))
        if (roles, None) in self.tensors:
            return self.tensors[roles, None].shape[0]
        numbers = {expert for _, expert in self.tensors if expert is not None}
        for roles in self.leaves:
            for expert in range(max(numbers) + 1):
                if (roles, expert) not in self.tensors:
                    raise CheckpointError(
                        f"{next(iter(self.tensors.values())).file} and what belongs to it lack "
                        f"{shown(f'{self.prefix}experts.{expert}.{self.leaves[roles]}')}, one of "
                        f"{max(numbers) + 1} experts",
                        hint="download the missing shard, or check how the model was written",
                    )
        return max(numbers) + 1

    def upright(self, info: TensorInfo) -> TensorInfo:
        """A tensor with its matrices as [out, in]."""
        return transposed(info) if self.form is not None and self.form.transposed else info

    def matrix(
        self, upright: Mapping[tuple[Roles, int | None], TensorInfo], role: str, expert: int
    ) -> Matrix:
        """One matrix of one expert."""
        roles = next(r for r in self.leaves if role in r)
        info = upright.get((roles, None)) or upright[roles, expert]
        rows, columns = info.shape[-2] // len(roles), info.shape[-1]
        first = roles.index(role) + (expert * len(roles) if len(info.shape) == 3 else 0)
        return Matrix(info, first * rows * columns, rows, columns)


def _collect(tensors: Mapping[str, TensorInfo]) -> list[_Layer]:
    layers: dict[str, _Layer] = {}
    for name, info in tensors.items():
        match = _SINGLE.fullmatch(name) if len(info.shape) == 2 else None
        single = match is not None
        if match is None and len(info.shape) == 3:
            match = _ALL.fullmatch(name)
        if match is None or match["leaf"] not in _LEAVES[single]:
            continue
        roles = _LEAVES[single][match["leaf"]]
        layer = layers.setdefault(match["block"] + match["module"], _Layer(match["block"], match["module"]))
        layer.tensors[roles, int(match["expert"]) if single else None] = info
        leaf = name.rpartition(f"experts.{match['expert']}.")[2] if single else name[match.end("module") :]
        layer.leaves.setdefault(roles, leaf)
    biased = {match["block"] + match["module"] for match in map(_BIAS.fullmatch, tensors) if match}
    for prefix, layer in layers.items():
        if prefix not in biased:
            layer.form = _form(layer, tensors)
    return list(layers.values())


def _forms(reference: Mapping[str, TensorInfo]) -> dict[str, dict[str, _Form]]:
    """For each stack of layers and module in it, how experts are stored."""
    forms: dict[str, dict[str, _Form]] = {}
    for layer in _collect(reference):
        if layer.form is not None:
            forms.setdefault(layer.stack, {}).setdefault(layer.module, layer.form)
    return forms


def _form(layer: _Layer, tensors: Mapping[str, TensorInfo]) -> _Form | None:
    single = all(expert is not None for _, expert in layer.tensors)
    mixed = not single and any(expert is not None for _, expert in layer.tensors)
    form = _Form(single, tuple(sorted(layer.leaves.items())), False)
    if mixed or len(set(form.roles)) < len(form.roles) or set(form.roles) not in _COMPLETE:
        return None
    if single:
        return form
    turned = _transposed(layer, tensors)
    return None if turned is None else replace(form, transposed=turned)


def _transposed(layer: _Layer, tensors: Mapping[str, TensorInfo]) -> bool | None:
    """Whether the last two sizes are exchanged; None if the shapes fit neither way."""
    experts, inner, outer = layer.tensors[("down",), None].shape
    upper = next(info for (roles, _), info in layer.tensors.items() if "up" in roles).shape
    times = 2 if _GATED in layer.leaves else 1
    usual = upper == (experts, times * outer, inner)
    turned = upper == (experts, outer, times * inner)
    if usual and turned:  # without fusing, both matrices fit both ways: the router knows the model's size
        sizes = {
            info.shape[1]
            for name, info in tensors.items()
            if name.startswith(layer.prefix) and len(info.shape) == 2 and info.shape[0] == experts
        }
        return inner not in sizes and outer in sizes
    return turned if usual or turned else None
