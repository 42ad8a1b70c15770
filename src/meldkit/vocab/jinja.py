"""Chat templates as Jinja: whether one works, and which tokens it writes."""

from __future__ import annotations

import functools
import json
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from meldkit.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Lines of Python that rendering a short conversation may run; templates of real models need a few thousand.
_MAX_STEPS = 1_000_000
#: Digits, letters or entries that one multiplication in a template may make.
_MAX_SIZE = 1_000_000
#: Letters of a template's line that a message shows.
_SHOWN = 100
#: What a template may raise besides Jinja's own errors.
_FAILURES = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError, SyntaxError),
)
#: What transformers tells a template about the tokenizer; spelled as no marker is.
_SPECIAL_TOKENS = {
    f"{role}_token": f"({role})" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
}
#: Roles of the messages in the short conversations that templates are tried with.
_CONVERSATIONS = (("user", "assistant", "user"), ("system", "user", "assistant", "user"))
#: How markers of turns are written: <|…|>, <…>, [|…|] and [INST].
_MARKER = re.compile(
    r"<\|[^<>|\n]+\|>|(?<!<)<[^<>\s]+>(?!>)|\[\|[^\[\]|\n]+\|\]|\[/?[a-z]?[A-Z][A-Z0-9_]*\]",
)


def check_template(text: str, where: str) -> None:
    """Compile a template as transformers does, and render a short conversation with it.

    What the template refuses by `raise_exception` is its right. It is tried with messages that are texts
    and, if that fails, with messages that are lists of parts, as models of images have them.

    Args:
        text: the template.
        where: where the recipe has it, for messages; may be empty.

    Raises:
        RecipeError: it is not Jinja, uses what there is not, or fails.
    """
    from jinja2 import TemplateSyntaxError

    def refusal(line: int | None, message: str, hint: str = "") -> RecipeError:
        lines = re.split("\r\n|\r|\n", text)
        spot = f"line {line} of the chat_template" if line else "the chat_template"
        if line and line <= len(lines):
            hint = f"{hint} ".lstrip() + f"the line is: {_one_line(lines[line - 1])}"
        return RecipeError(f"{at(where)}{spot}: {message}", hint=hint)

    if not is_unicode(text):
        raise refusal(None, "it has half of a surrogate pair, which is no character")
    environment = _environment()
    try:
        tree = environment.parse(text)
        calls = _undefined_calls(tree, environment)
        template = environment.from_string(tree)
    except TemplateSyntaxError as e:
        unknown = re.match("No (filter|test) named '(.*)'", str(e.message))
        known = environment.filters if unknown and unknown[1] == "filter" else environment.tests
        hint = _near(unknown[2], known) if unknown else ""
        raise refusal(e.lineno, str(e.message).rstrip("."), hint) from e
    except _FAILURES as e:
        raise refusal(None, _reason(e)) from e
    if calls:
        name, line = calls[0]
        raise refusal(line, f"'{name}' is undefined", _near(name, environment.globals))
    for roles in _CONVERSATIONS:
        failure = _rendered(template, roles, in_parts=False)[1]
        if failure is not None and _rendered(template, roles, in_parts=True)[1] is not None:
            message = f"rendering a short conversation fails: {_reason(failure)}"
            raise refusal(_line(failure), message) from failure


def missing_tokens(text: str, tokens: Collection[str]) -> list[str]:
    """Markers of turns that a template writes out and a tokenizer lacks, in the order of the template.

    A marker is what looks like <|im_start|>, <s>, [INST] or [|user|] in the text between Jinja's brackets, in
    a string inside them, or in what becomes of a short conversation, where pieces are put together.

    Args:
        text: the template.
        tokens: every token of the tokenizer.
    """
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = _environment().parse(text)
        template = _environment().from_string(text)
    except (TemplateSyntaxError, *_FAILURES):  # a model's own that never worked: still better than silence
        pieces = [text]
    else:
        found = tree.find_all((nodes.TemplateData, nodes.Const))
        pieces = [n.data if isinstance(n, nodes.TemplateData) else n.value for n in found]
        for roles in _CONVERSATIONS:
            written, failure = _rendered(template, roles, in_parts=False)
            pieces.append(written if failure is None else _rendered(template, roles, in_parts=True)[0])
    markers = [marker for piece in pieces if isinstance(piece, str) for marker in _MARKER.findall(piece)]
    return [marker for marker in dict.fromkeys(markers) if marker not in tokens]


def _rendered(template: Template, roles: Sequence[str], *, in_parts: bool) -> tuple[str, Exception | None]:
    """What a template makes of a conversation; and what keeps it from that, other than its own refusal.

    Args:
        template: compiled.
        roles: of the messages, in order.
        in_parts: the content of a message is a list of parts instead of a text.
    """
    from jinja2 import TemplateError

    left = _MAX_STEPS

    def step(frame: FrameType, event: str, argument: object) -> Any:
        """Called at each line of Python that runs: nested loops may take for ever."""
        nonlocal left
        del frame, event, argument
        left -= 1
        if left < 0:
            raise RuntimeError(f"it is not done after {_MAX_STEPS:,} steps")
        return step

    texts = [f"says the {role}" for role in roles]
    contents = [[{"type": "text", "text": text}] for text in texts] if in_parts else texts
    messages = [{"role": r, "content": content} for r, content in zip(roles, contents, strict=True)]
    before = sys.gettrace()
    sys.settrace(step)
    try:
        written = template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **_SPECIAL_TOKENS
        )
    except (TemplateError, *_FAILURES) as e:
        # Only raise_exception raises the base class itself.
        return "", None if type(e) is TemplateError else e
    finally:
        sys.settrace(before)
    return written, None


def _undefined_calls(
    tree: nodes.Template, environment: ImmutableSandboxedEnvironment
) -> list[tuple[str, int]]:
    """Functions that are called and never defined, with lines; also where no short conversation comes."""
    from jinja2 import nodes

    known = {*environment.globals, "caller", "loop", "self", "super"}
    known |= {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    known |= {macro.name for macro in tree.find_all(nodes.Macro)}
    # Whoever asks for it first can do without it.
    asked = (test.node for test in tree.find_all(nodes.Test) if test.name == "defined")
    known |= {node.name for node in asked if isinstance(node, nodes.Name)}
    called = ((call.node, call.lineno) for call in tree.find_all(nodes.Call))
    return [
        (node.name, line) for node, line in called if isinstance(node, nodes.Name) and node.name not in known
    ]


def _line(e: BaseException) -> int | None:
    """The innermost line of the template that an error of rendering comes from."""
    frames = traceback.walk_tb(e.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == "<template>"]
    return lines[-1] if lines else None


def _reason(e: BaseException) -> str:
    return (str(e) or type(e).__name__).rstrip(".")


def _one_line(text: str) -> str:
    """A line of a template for a message."""
    line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _near(name: str, known: Iterable[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did") else ""


def at(where: str) -> str:
    return f"{where}: " if where else ""


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates find it in transformers, except that it does not multiply without bounds."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} around what the model says."""

        tags = {"generation"}  # noqa: RUF012 - as the base class has it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("unchanged"), [], [], body).set_lineno(line)

        def unchanged(self, caller: Any) -> str:
            return caller()

    class PublicNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            check_public(name)
            super().__setitem__(name, value)

    def check_public(*names: str) -> None:
        for name in names:
            if name.startswith("_"):
                raise SecurityError(f"names in a namespace must not begin with '_', as '{name}' does")

    def namespace(*args: Any, **kwargs: Any) -> PublicNamespace:
        check_public(*dict(*args, **kwargs))
        return PublicNamespace(*args, **kwargs)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    helpers = cast("dict[str, Any]", environment.globals)
    helpers |= {"raise_exception": raise_exception, "strftime_now": _now}
    helpers |= {"namespace": namespace, "dict": _MakeDict()}
    # Without this even compiling 9 ** (9 ** 9) would not end.
    environment.intercepted_binops = frozenset({"*", "**"})
    environment.binop_table |= {"*": _times, "**": _power}
    return environment


class _MakeDict:
    """`dict` without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(format: str) -> str:  # noqa: A002 - templates may pass it by name
    return datetime.now().strftime(format)


def _times(left: Any, right: Any) -> Any:
    for value, factor in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(factor, int):
            _check_size(len(cast("Sequence[Any]", value)) * factor)
    if isinstance(left, int) and isinstance(right, int):
        _check_size(left.bit_length() + right.bit_length())
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_size(left.bit_length() * right)
    return left**right


def _check_size(size: int) -> None:
    if size > _MAX_SIZE:
        raise OverflowError("the result of a multiplication is too large")


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which only an escape can bring in."""
    return not re.search("[\ud800-\udfff]", text)
