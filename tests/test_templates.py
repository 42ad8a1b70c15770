"""Chat templates: read and written as transformers loads them, chosen, checked, and the presets."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meldkit.errors import CheckpointError, RecipeError
from meldkit.vocab import trial
from meldkit.vocab.jinja import check_template, missing_tokens
from meldkit.vocab.templates import (
    PRESETS,
    ChatTemplates,
    choose_templates,
    preset,
    read_templates,
    write_templates,
)

CONFIG = "tokenizer_config.json"
OLD = "{% for m in messages %}old {{ m.content }}{% endfor %}"
NEW = "{% for m in messages %}new {{ m.content }} é\n{% endfor %}"
TOOLS = "{{ tools }}{{ messages }}"
HELLO = [{"role": "user", "content": "Hello"}]
TALK = [*HELLO, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "How are you?"}]
BRIEF = [{"role": "system", "content": "Be brief."}]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without a chat template."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("plain")
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "model"))


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def of_processor(folder: Path) -> object:
    """What a processor of transformers, which wraps tokenizers of models that see or hear, loads."""
    from transformers import ProcessorMixin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # transformers leaves files open
        return ProcessorMixin.get_processor_dict(str(folder))[0].get("chat_template")


def as_loaded(templates: ChatTemplates) -> object:
    """The attribute `chat_template` of whatever loads these."""
    if not templates.named:
        return templates.default
    return ({} if templates.default is None else {"default": templates.default}) | dict(templates.named)


def store(folder: Path, files: Mapping[str, object]) -> None:
    """Put templates into a folder; the content of tokenizer_config.json is added to what is there."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if not name.endswith(".json"):
            path.write_text(str(content), "utf-8")
        else:
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | {"chat_template": content}))


#: Ways to store templates that a tokenizer loads.
STORED: dict[str, dict[str, object]] = {
    "nowhere": {},
    "null": {CONFIG: None},
    "text": {CONFIG: OLD},
    "list": {CONFIG: [{"name": "default", "template": OLD}, {"name": "rag", "template": TOOLS}]},
    "mapping": {CONFIG: {"default": OLD, "tool_use": TOOLS}},
    "no default": {CONFIG: {"tool_use": TOOLS}},
    "file": {"chat_template.jinja": OLD},
    "file and text": {"chat_template.jinja": OLD, CONFIG: "other"},
    "files": {"chat_template.jinja": OLD, "additional_chat_templates/rag.jinja": TOOLS},
    "second default": {"chat_template.jinja": "other", "additional_chat_templates/default.jinja": OLD},
    "only named files": {"additional_chat_templates/tool_use.jinja": TOOLS, CONFIG: OLD},
}
#: Ways that only a processor knows.
OF_PROCESSOR: dict[str, dict[str, object]] = {
    "legacy file": {"chat_template.json": OLD},
    "processor_config.json": {"processor_config.json": OLD},
    "legacy file and text": {"chat_template.json": OLD, CONFIG: OLD},
    "legacy file and file": {"chat_template.json": "other", "chat_template.jinja": OLD},
    "all": {
        "processor_config.json": "other",
        "chat_template.json": "other",
        "chat_template.jinja": OLD,
        CONFIG: "other",
    },
}


@pytest.mark.parametrize("files", STORED.values(), ids=STORED)
def test_templates_are_those_that_transformers_loads(files: Mapping[str, object], folder: Path) -> None:
    store(folder, files)
    assert as_loaded(read_templates(folder)) == load(folder).chat_template


@pytest.mark.parametrize("files", OF_PROCESSOR.values(), ids=OF_PROCESSOR)
def test_templates_of_a_processor_count_where_the_tokenizer_has_none(
    files: Mapping[str, object], folder: Path
) -> None:
    store(folder, files)
    assert read_templates(folder) == ChatTemplates(OLD)
    if set(files) <= {"chat_template.json", "processor_config.json"}:
        assert of_processor(folder) == OLD


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CONFIG, b"{", "is not valid JSON"),
        (CONFIG, b'{"chat_template": 5}', "not a text with a name: 'default', 5"),
        (
            CONFIG,
            b'{"chat_template": [{"name": ["a"], "template": ""}]}',
            "not a text with a name: ['a'], ''",
        ),
        (CONFIG, b'{"chat_template": ["a"]}', "not a text with a name: None, None"),
        (CONFIG, b'{"chat_template": {"../a": "b"}}', "cannot be stored in a file: '../a'"),
        (CONFIG, b'{"chat_template": "\\ud800"}', "cannot be stored in a file: 'default'"),
        ("chat_template.json", b"[]", "is not a mapping"),
        ("chat_template.jinja", b"\xff", "is not text in UTF-8 (byte 0)"),
    ],
)
def test_damaged_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(message)) as e:
        read_templates(tmp_path)
    assert str(tmp_path) in e.value.message


@pytest.mark.parametrize(
    "templates",
    [ChatTemplates(NEW), ChatTemplates(NEW, {"tool_use": TOOLS, "x": OLD}), ChatTemplates()],
    ids=["one", "several", "none"],
)
@pytest.mark.parametrize("files", (STORED | OF_PROCESSOR).values(), ids=STORED | OF_PROCESSOR)
def test_written_templates_are_loaded(
    templates: ChatTemplates, files: Mapping[str, object], folder: Path
) -> None:
    before = json.loads((folder / CONFIG).read_text())
    store(folder, files)
    write_templates(templates, folder)
    tokenizer = load(folder)
    assert tokenizer.chat_template == as_loaded(templates)
    assert read_templates(folder) == templates
    config = json.loads((folder / CONFIG).read_text())
    # Older versions of transformers read this alone.
    if files.get(CONFIG) or not files:
        stored = config.pop("chat_template", None)
        assert stored == templates.default or {e["name"]: e["template"] for e in stored} == as_loaded(
            templates
        )
    config.pop("chat_template", None)
    assert config == before
    if set(files) - {CONFIG}:
        assert of_processor(folder) == as_loaded(templates)
        # Processors before transformers 4.48 read the legacy file alone, later ones none beside named files.
        legacy = folder / "chat_template.json"
        assert legacy.exists() == (legacy.name in files and templates == ChatTemplates(NEW))
    else:
        assert not list(folder.rglob("*.jinja"))
    if templates.default is not None:
        assert tokenizer.apply_chat_template(HELLO, tokenize=False) == "new Hello é\n"


def test_a_processor_gets_its_template_in_a_file(folder: Path) -> None:
    store(folder, {CONFIG: OLD})
    (folder / "preprocessor_config.json").write_text("{}")
    write_templates(ChatTemplates(NEW), folder)
    assert of_processor(folder) == load(folder).chat_template == NEW
    assert json.loads((folder / CONFIG).read_text())["chat_template"] == NEW


def test_what_is_no_template_is_kept(folder: Path) -> None:
    store(folder, {"additional_chat_templates/a.jinja": OLD, "additional_chat_templates/notes.txt": "mine"})
    config = json.loads((folder / CONFIG).read_text()) | {"half a pair": "\ud800", "e": "é"}
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / "processor_config.json").write_text('{"image_size": 3, "chat_template": "old"}')
    write_templates(ChatTemplates(), folder)
    assert (folder / "additional_chat_templates" / "notes.txt").read_text() == "mine"
    assert json.loads((folder / "processor_config.json").read_text()) == {"image_size": 3}
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "processor_config.json").unlink()
    write_templates(ChatTemplates(NEW), folder)
    assert json.loads((folder / CONFIG).read_text()) == config | {"chat_template": NEW}
    assert "é" in (folder / CONFIG).read_text("utf-8")


names = st.text(st.sampled_from("abc_ .-é"), min_size=1, max_size=6).filter(lambda name: name != "default")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20)
some_templates = st.builds(
    ChatTemplates, st.none() | texts.filter(str.strip), st.dictionaries(names, texts, max_size=3)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(some_templates, min_size=1, max_size=3), st.sampled_from([*STORED, *OF_PROCESSOR]))
def test_what_is_written_is_read(versions: list[ChatTemplates], stored: str) -> None:
    with TemporaryDirectory() as name:
        store(Path(name), (STORED | OF_PROCESSOR)[stored])
        for templates in versions:
            write_templates(templates, Path(name))
            assert read_templates(Path(name)) == templates


A, B, C = ChatTemplates("{{ a }}"), ChatTemplates("{{ b }}", {"rag": "{{ r }}"}), ChatTemplates("{{ c }}")
NONE = ChatTemplates()


@pytest.mark.parametrize(
    ("models", "donor", "chosen", "note"),
    [
        ([A, B, B], 0, B, "r.yml:3: the chat template is that of 'm1': which 2 of 3 models have"),
        ([A, B], 0, A, "r.yml:3: the chat template is that of 'm0': all models have different ones"),
        ([A, B], 1, B, "r.yml:3: the chat template is that of 'm1': all models have different ones"),
        ([NONE, A, C], 0, A, "r.yml:3: the chat template is that of 'm1': all models have different ones"),
        ([A, A, B, B, C], 3, B, "r.yml:3: the chat template is that of 'm3': which 2 of 5 models have"),
        ([A, A, B, B, C], 4, A, "r.yml:3: the chat template is that of 'm0': which 2 of 5 models have"),
        ([NONE, A, NONE, A], 2, A, None),
        ([ChatTemplates("{{ b }}\n"), B], 0, ChatTemplates("{{ b }}\n"), None),
        ([ChatTemplates("{{ b }}\n"), B], 1, B, None),
        ([NONE, NONE], 0, NONE, "r.yml:3: no model has a chat template, so the output gets none"),
    ],
)
def test_auto(models: Sequence[ChatTemplates], donor: int, chosen: ChatTemplates, note: str | None) -> None:
    labelled = [(f"m{i}", templates) for i, templates in enumerate(models)]
    assert choose_templates("auto", labelled, donor, "r.yml:3") == (chosen, [note] if note else [])


def test_a_preset_or_text_replaces_all_templates_of_the_donor() -> None:
    note = "r.yml:3: the other chat templates of 'b' (rag) are left out: they may be of another format"
    models = [("a", A), ("b", B)]
    assert choose_templates(" chatml\n", models, 0, "r.yml:3") == (ChatTemplates(preset("chatml")), [])
    assert choose_templates("chatml", models, 1, "r.yml:3") == (ChatTemplates(preset("chatml")), [note])
    assert choose_templates(NEW, models, 1, "r.yml:3") == (ChatTemplates(NEW), [note])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "ChatLM",
            "r.yml:3: there is no chat_template named 'ChatLM'\n"
            "  did you mean 'chatml'? names: auto, alpaca, chatml, exaone, llama3, mistral; anything else "
            "must be the text of a Jinja template, which has {{ … }} or {% … %} in it",
        ),
        (
            "template.txt",
            "r.yml:3: there is no chat_template named 'template.txt'\n"
            "  names: auto, alpaca, chatml, exaone, llama3, mistral; anything else must "
            "be the text of a Jinja template, which has {{ … }} or {% … %} in it",
        ),
        (
            "{% for m in messages %}\n{{ m.content }}\n{% endfro %}",
            "r.yml:3: line 3 of the chat_template: Encountered unknown tag 'endfro'. Jinja was looking for "
            "the following tags: 'endfor' or 'else'. The innermost block that needs to be closed is 'for'\n"
            "  the line is: {% endfro %}",
        ),
        (
            "{{ messages[0].content | trimm }}",
            "r.yml:3: line 1 of the chat_template: No filter named 'trimm'\n"
            "  did you mean 'trim'? the line is: {{ messages[0].content | trimm }}",
        ),
        (
            "{% if tools %}\n{{ raise_exeption('no tools') }}\n{% endif %}",
            "r.yml:3: line 2 of the chat_template: 'raise_exeption' is undefined\n"
            "  did you mean 'raise_exception'? the line is: {{ raise_exeption('no tools') }}",
        ),
        (
            "\n{{ messages[0].text + 'a' }}",
            "r.yml:3: line 2 of the chat_template: rendering a short conversation fails: "
            "'dict object' has no attribute 'text'\n  the line is: {{ messages[0].text + 'a' }}",
        ),
        (
            "{% for i in range(10 ** 9) %}{% endfor %}",
            "r.yml:3: line 1 of the chat_template: rendering a short conversation fails: Range too big. The "
            "sandbox blocks ranges larger than MAX_RANGE (100000)\n"
            "  the line is: {% for i in range(10 ** 9) %}{% endfor %}",
        ),
        (
            "{% set r = range(99999) | list %}\n{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
            "r.yml:3: line 2 of the chat_template: rendering a short conversation fails: "
            "it is not done after 1,000,000 steps\n"
            "  the line is: {% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
        ),
        (
            "{{ 9 ** (9 ** 9) }}",
            "r.yml:3: line 1 of the chat_template: rendering a short conversation fails: "
            "the result of a multiplication is too large\n  the line is: {{ 9 ** (9 ** 9) }}",
        ),
        (
            "{{ 1e999 > messages | length }}",
            "r.yml:3: line 1 of the chat_template: rendering a short conversation fails: "
            "name 'inf' is not defined\n  the line is: {{ 1e999 > messages | length }}",
        ),
        (
            "{{ '\ud800' }}",
            "r.yml:3: the chat_template: it has half of a surrogate pair, which is no character",
        ),
    ],
)
def test_messages(setting: str, message: str) -> None:
    with pytest.raises(RecipeError) as e:
        choose_templates(setting, [("a", A)], 0, "r.yml:3")
    assert str(e.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 10 ** 9 }}",
        "{{ [1, 2] * 10 ** 9 }}",
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ 1" + "0" * 9999 + " }}",
        "".join("{% for i in messages %}" for _ in range(30)) + "{% endfor %}" * 30,
        "{% include 'other.jinja' %}",
        "{{ ''.__class__ }}{{ messages.append(1) }}",
        # What grows in a single step of Python, of which the sandbox sees nothing.
        "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x] * 2 %}{% endfor %}{{ n.x }}",
        "{{ 'x' | center(10 ** 12) }}",
        "{{ '%999999999999d' | format(1) }}",
        "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    ],
)
def test_what_does_not_end_or_fit_is_refused(text: str) -> None:
    tracer = sys.gettrace()
    with pytest.raises(RecipeError, match=r"^(line 1 of )?the chat_template: "):
        check_template(text, "")
    assert sys.gettrace() is tracer


def test_where_python_cannot_be_started_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in programs that hold Python inside; markers are then those that the text shows."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    text = "{{ '<|nowhere|>' ~ messages[0].content }}"
    with pytest.raises(RecipeError) as refused:
        check_template(text, "recipe.yml:3")
    assert refused.value.message == (
        "recipe.yml:3: the chat_template: it cannot be tried, because /nowhere/python cannot be started: "
        "No such file or directory"
    )
    assert missing_tokens(text, []) == ["<|nowhere|>"]


#: Texts that show what a template finds in transformers, and what it does not.
WORKING = [
    "{% generation %}{% set x = 1 %}{{ messages | tojson(indent=2) }}{% endgeneration %}{{ x }}",
    "{% for i in [0, 1, 2, 3] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% break %}{% endfor %}",
    "{{ 'é<' | tojson }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "{% set n = namespace({'a': 1}, b=2) %}{% set n.c = 3 %}{{ n.a + n.b + n.c }}",
    "{{ dict(a=1) }}{{ dict.fromkeys('ab', 0) }}{{ 2 ** 10 * 3 }}{{ '=' * 20 }}{{ 2 * 'ab' }}{{ [0] * 2 }}",
    "{{ strftime_now('%Y') | length }}",
    "{{ bos_token }}{{ eos_token + 'x' }}{{ nothing }}{{ messages[0].nothing }}",
    "  {% if true %}\n  a\n  {% endif %}\n b {#- c -#}\n\n",
    "{% if lookup is defined %}{{ lookup(1) }}{% endif %}",
    "{% macro f(g) %}{{ caller(1) }}{% endmacro %}{% call(x) f(1) %}{{ x }}{% endcall %}",
    "{% set f = messages[0].get %}{{ f('role') }}",
]
FAILING = [
    "{% set n = namespace(_a=1) %}",
    "{% set n = namespace() %}{% set n._a = 1 %}",
    "{{ dict.items({}) }}",
    "{{ messages[0].role + nothing }}",
    "{{ messages[0].content | from_json }}",
    "{{ raise_exception() }}",
    "{{ strftime_then('%Y') }}",
]


@pytest.mark.parametrize("text", [*WORKING, *map(preset, PRESETS)])
def test_what_transformers_renders_is_accepted(text: str, plain: Path) -> None:
    rendered = load(plain).apply_chat_template(TALK, chat_template=text, tokenize=False)
    check_template(text, "")
    ours = trial._environment().from_string(text)  # pyright: ignore[reportPrivateUsage]
    assert ours.render(messages=TALK, bos_token="<s>", eos_token="</s>", unk_token="<unk>") == rendered


@pytest.mark.parametrize("text", FAILING)
def test_what_transformers_cannot_render_is_refused(text: str, plain: Path) -> None:
    from jinja2 import TemplateError

    with pytest.raises((TemplateError, TypeError, ValueError)):
        load(plain).apply_chat_template(TALK, chat_template=text, tokenize=False)
    with pytest.raises(RecipeError):
        check_template(text, "")


@pytest.mark.parametrize(
    "text",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}",
        "{% for m in messages %}{% for p in m.content %}{{ p['text'] + '' }}{% endfor %}{% endfor %}",
    ],
)
def test_templates_may_refuse_messages_and_want_parts(text: str) -> None:
    check_template(text, "")


pieces = st.sampled_from(sorted({p for name in PRESETS for p in re.split(r"(\W)", preset(name))}))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_text_is_accepted_or_refused(data: st.DataObject) -> None:
    text = preset(data.draw(st.sampled_from(PRESETS)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 8)))
        text = text[:start] + data.draw(pieces) + text[stop:]
    # In this process: these texts need no limits, and another one for each takes its time.
    found = trial.tried(text)
    assert found["error"] is None or isinstance(found["error"][1], str)
    assert all(isinstance(marker, str) for marker in found["markers"])


def test_missing_tokens() -> None:
    text = (
        "<s>{% for m in messages %}{{ '<|im_start|>' + m['role'] + \"[INST]\" }}[/INST] a < b > c [x] [0]"
        "{{ m['content'] }}<|im_end|>{# <|comment|> #}<|im_end|><<SYS>></think>"
        "[|user|][gMASK]<|a b|>{% endfor %}"
    )
    markers = [
        "<s>",
        "<|im_start|>",
        "[INST]",
        "[/INST]",
        "<|im_end|>",
        "</think>",
        "[|user|]",
        "[gMASK]",
        "<|a b|>",
    ]
    assert missing_tokens(text, ()) == markers
    assert missing_tokens(text, {"<s>", "[INST]", "<|im_end|>", *markers[5:]}) == ["<|im_start|>", "[/INST]"]
    assert missing_tokens("{% broken <|im_start|>", ()) == ["<|im_start|>"]
    assert missing_tokens(preset("exaone"), ()) == [
        "[|system|]",
        "[|endofturn|]",
        "[|assistant|]",
        "[|user|]",
    ]
    assert missing_tokens(preset("llama3"), ()) == ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


#: Preset → what TALK becomes without and with a system message, each asking for an answer.
RENDERED = {
    "alpaca": (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHello\n\n### Response:\nHi!</s>\n\n"
        "### Instruction:\nHow are you?\n\n### Response:\n",
        "<s>Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi!</s>\n\n"
        "### Instruction:\nHow are you?\n\n### Response:\n",
    ),
    "chatml": (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "exaone": (
        "[|system|][|endofturn|]\n[|user|]Hello\n[|assistant|]Hi![|endofturn|]\n[|user|]How are you?\n"
        "[|assistant|]",
        "[|system|]Be brief.[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi![|endofturn|]\n"
        "[|user|]How are you?\n[|assistant|]",
    ),
    "llama3": (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (
        "<s> [INST] Hello [/INST] Hi!</s> [INST] How are you? [/INST]",
        "<s> [INST] Be brief.\n\nHello [/INST] Hi!</s> [INST] How are you? [/INST]",
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, folder: Path) -> None:
    from jinja2 import Environment

    templates, _ = choose_templates(name, [("a", NONE)], 0, "")
    write_templates(templates, folder)
    tokenizer = load(folder)
    for expected, messages in zip(RENDERED[name], (TALK, [*BRIEF, *TALK]), strict=True):
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == expected
        # Programs other than transformers keep the line ends of a template.
        other = Environment(keep_trailing_newline=True).from_string(preset(name))
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        assert other.render(messages=messages, add_generation_prompt=True, **tokens) == expected
        # What came before stays as it is when a conversation goes on.
        for end in range(len(messages) - len(TALK) + 1, len(messages)):
            start = tokenizer.apply_chat_template(messages[:end], tokenize=False)
            assert expected.startswith(start)


def test_every_preset_has_a_file() -> None:
    assert sorted(path.stem for path in Path(trial.__file__).with_name("presets").iterdir()) == list(PRESETS)


def test_presets_without_special_tokens_and_with_other_roles(plain: Path) -> None:
    tokenizer = load(plain)
    tokenizer.bos_token = tokenizer.eos_token = None

    def render(name: str, messages: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(messages, chat_template=preset(name), tokenize=False)

    assert render("mistral", TALK[:2]) == " [INST] Hello [/INST] Hi!"
    assert render("llama3", HELLO) == "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    assert render("alpaca", [*HELLO, {"role": "user_context", "content": "a "}]) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nHello\n\n"
        "### Input:\na"
    )
    from jinja2 import TemplateError

    for name, messages, message in (
        ("mistral", [*HELLO, *HELLO], "in the Mistral format user and assistant take turns"),
        ("mistral", [*HELLO, *BRIEF], "in the Mistral format user and assistant take turns"),
        ("alpaca", [{"role": "tool", "content": ""}], "the Alpaca format has no place for the role 'tool'"),
    ):
        with pytest.raises(TemplateError, match=message):
            render(name, messages)
