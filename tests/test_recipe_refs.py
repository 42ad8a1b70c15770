"""Model references: text form, mapping form, and the way between them."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meldkit.errors import RecipeError
from meldkit.recipe import AdapterRef, ModelRef


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/name", ModelRef("org/name")),
        ("org/name@main", ModelRef("org/name", "main")),
        ("./models/a/", ModelRef("./models/a")),
        ("a//", ModelRef("a")),
        ("/", ModelRef("/")),
        ("//", ModelRef("/")),
        ("./", ModelRef(".")),
        ("  a ", ModelRef("a")),
        (r"C:\models\x", ModelRef(r"C:\models\x")),
        ("C:\\models\\x\\", ModelRef(r"C:\models\x")),
        ("C:/models/x/", ModelRef("C:/models/x")),
        ("C:\\", ModelRef("C:\\")),
        ("C:/", ModelRef("C:/")),
        ("C:", ModelRef("C:")),
        ("a/@v1", ModelRef("a", "v1")),
        ("a+b", ModelRef("a", None, (AdapterRef("b"),))),
        ("a@r+b@s+c/", ModelRef("a", "r", (AdapterRef("b", "s"), AdapterRef("c")))),
    ],
)
def test_text_form(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text) == ref
    assert ModelRef.from_value(text) == ref
    assert ModelRef.parse(str(ref)) == ref
    assert ref.to_value() == str(ref)


@pytest.mark.parametrize("text", ["", " ", "+a", "a+", "a++b", "@r", "a@", "a@b@c", "a+@r"])
def test_malformed_text(text: str) -> None:
    with pytest.raises(RecipeError):
        ModelRef.parse(text)
    with pytest.raises(RecipeError, match=r"^r\.yml:7: "):
        ModelRef.from_value(text, "r.yml:7")


@pytest.mark.parametrize(
    ("value", "ref"),
    [
        ({"model": "a@r"}, ModelRef("a", "r")),
        ({"model": "a+b"}, None),
        ({"model": {"path": "a+b@c"}}, ModelRef("a+b@c")),
        ({"model": {"path": "a", "revision": "r"}, "lora": None}, ModelRef("a", "r")),
        ({"model": "a", "lora": "b@s"}, ModelRef("a", None, (AdapterRef("b", "s"),))),
        ({"model": "a", "lora": {"path": "b"}}, ModelRef("a", None, (AdapterRef("b"),))),
        (
            {"model": "a", "lora": ["b", {"path": "c"}]},
            ModelRef("a", None, (AdapterRef("b"), AdapterRef("c"))),
        ),
        ({"model": "a", "override_architecture": "X"}, ModelRef("a", override_architecture="X")),
    ],
)
def test_mapping_form(value: dict[str, object], ref: ModelRef | None) -> None:
    read = ModelRef.from_value(value)
    # In the mapping form '+' is part of the path.
    assert read == (ref or ModelRef("a+b"))
    assert ModelRef.from_value(read.to_value()) == read


def test_python_values() -> None:
    assert ModelRef.from_value(PurePosixPath("a@b/c+d")) == ModelRef("a@b/c+d")
    ref = ModelRef("a")
    assert ModelRef.from_value(ref) is ref
    assert len({ModelRef("a"), ModelRef.parse("a/"), ModelRef("a", "r")}) == 2


@pytest.mark.parametrize(
    "value", [None, 3, True, [], {}, {"model": None}, {"model": 3}, {"model": {"path": ""}}]
)
def test_not_models(value: object) -> None:
    with pytest.raises(RecipeError):
        ModelRef.from_value(value)


texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1)
paths = texts.map(lambda text: text.rstrip("/\\") or "x")
refs = st.builds(
    ModelRef,
    paths,
    st.none() | texts,
    st.lists(st.builds(AdapterRef, paths, st.none() | texts), max_size=3).map(tuple),
    st.none() | texts,
)


@given(refs)
def test_value_form_reads_back(ref: ModelRef) -> None:
    assert ModelRef.from_value(ref.to_value()) == ref
    assert ModelRef.from_value(ref.to_mapping()) == ref
