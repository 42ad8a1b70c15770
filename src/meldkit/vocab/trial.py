"""Chat templates tried in a process of their own: a program to be run, that knows nothing of meldkit.

Jinja's sandbox keeps a template from everything that is not the conversation. It does not keep one from
taking all memory, or from never ending inside one step of Python, such as making a text of lists in lists in
lists: only the system can stop that, and only for a process as a whole.

One JSON object comes in, `{"text": template, "path": sys.path}`, and one goes out, see `tried`.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Seconds of work and bytes of memory that a template gets; those of real models need a hundredth of it.
_SECONDS, _MEMORY = 3, 512 * 2**20
#: Lines of Python that rendering a short conversation may run; templates of real models need a few thousand.
_MAX_STEPS = 1_000_000
#: Digits, letters or entries that one multiplication in a template may make.
_MAX_SIZE = 1_000_000
#: Markers that are passed on; real templates write a dozen.
_MAX_MARKERS = 1_000
#: What a template may raise besides Jinja's own errors; NameError where it has a number like 1e999, which
#: Jinja writes into its code as inf.
_FAILURES = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, NameError),
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


def tried(text: str) -> dict[str, Any]:
    """Compile a template as transformers does, and render short conversations with it.

    Returns:
        error: what is wrong with it, None if nothing is: the line, if it is known; the message; the name
            that is not known, if that is what is wrong; and the known ones.
        markers: what it writes that looks like the marker of a turn.
    """
    from jinja2 import TemplateSyntaxError, nodes

    environment = _environment()
    try:
        tree = environment.parse(text)
        calls = _undefined_calls(tree, environment)
        found = tree.find_all((nodes.TemplateData, nodes.Const))
        pieces = [n.data if isinstance(n, nodes.TemplateData) else n.value for n in found]
        template = environment.from_string(tree)
    except TemplateSyntaxError as e:
        unknown = re.match("No (filter|test) named '(.*)'", str(e.message))
        known = environment.filters if unknown and unknown[1] == "filter" else environment.tests
        name = unknown[2] if unknown else None
        error: Any = (e.lineno, str(e.message).rstrip("."), name, [*known] if unknown else [])
        # A model's own that never worked: still better than silence.
        return {"error": error, "markers": markers([text])}
    except _FAILURES as e:
        return {"error": (None, _reason(e), None, []), "markers": markers([text])}
    error = None
    if calls:
        name, line = calls[0]
        error = (line, f"'{name}' is undefined", name, [*environment.globals])
    for roles in _CONVERSATIONS:
        written, failure = _rendered(template, roles, in_parts=False)
        if failure is not None:
            written, again = _rendered(template, roles, in_parts=True)
            if again is not None and error is None:
                error = (
                    _line(failure),
                    f"rendering a short conversation fails: {_reason(failure)}",
                    None,
                    [],
                )
        pieces.append(written)
    return {"error": error, "markers": markers([piece for piece in pieces if isinstance(piece, str)])}


def markers(pieces: Iterable[str]) -> list[str]:
    """What looks like the marker of a turn in some texts, once each."""
    found = dict.fromkeys(match[0] for piece in pieces for match in _MARKER.finditer(piece))
    return list(found)[:_MAX_MARKERS]


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
    if isinstance(e, MemoryError):
        return "it takes too much memory"
    return (str(e) or type(e).__name__).rstrip(".")


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


def _limit() -> None:
    """Have the system stop this process when it takes too much; not every system can."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    request: dict[str, Any] = json.load(sys.stdin)
    sys.path[:] = request["path"]
    _limit()
    json.dump(tried(request["text"]), sys.stdout)
