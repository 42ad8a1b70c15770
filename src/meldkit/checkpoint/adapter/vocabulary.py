"""What an adapter does to a model's embedding and head besides their values: tying and size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from meldkit.checkpoint.adapter.settings import Settings
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import TensorInfo
from meldkit.errors import MismatchError

EMBEDDING = re.compile(r"(.+\.)?(embed_tokens|wte)\.weight")
HEAD = re.compile(r"(.+\.)?lm_head\.weight")
#: Architectures that have a head, be it stored or not.
_HEADED = re.compile(r".*(ForCausalLM|LMHeadModel|ForConditionalGeneration)")


class Vocabulary:
    """The embedding and the head of one model under an adapter.

    Args:
        settings: the adapter's adapter_config.json.
        weights: the model's tensors, with what is changed in them meanwhile.
        config: its configuration, which is changed.

    Attributes:
        tied: the embedding that is the head as well, as long as there is such.
        kept_tied: whether the adapter's training kept both the same.
    """

    def __init__(self, settings: Settings, weights: Mapping[str, TensorInfo], config: dict[str, Any]) -> None:
        self.kept_tied = bool(settings.values.get("ensure_weight_tying"))
        self._folder = settings.folder
        self._weights = weights
        self._config = config
        self.tied = None if self.kept_tied else self._tied()

    def _tied(self) -> str | None:
        architectures = self._config.get("architectures")
        headed = isinstance(architectures, list) and any(
            _HEADED.fullmatch(str(name)) for name in cast("list[object]", architectures)
        )
        # Old configurations say nothing where they tie; a stored head counts for more than that.
        default = not any(HEAD.fullmatch(name) for name in self._weights)
        text = self._config.get("text_config")
        sections = [self._config, *([cast("dict[str, Any]", text)] if isinstance(text, dict) else [])]
        tied = all(section.get("tie_word_embeddings", default) for section in sections)
        embeddings = [name for name in self._weights if EMBEDDING.fullmatch(name)]
        return embeddings[0] if headed and tied and len(embeddings) == 1 else None

    def untie(self) -> tuple[str, TensorInfo | None]:
        """Let the model have a head of its own.

        Returns:
            The head's name; and the head, for now the embedding as it is, if none is stored.
        """
        assert self.tied is not None
        embedding, self.tied = self.tied, None
        self._configure("tie_word_embeddings", False)
        for name in self._weights:
            if HEAD.fullmatch(name):
                return name, None
        head = ("language_model." if embedding.startswith("language_model.") else "") + "lm_head.weight"
        return head, replace(self._weights[embedding], name=head)

    def resize(self) -> None:
        """Adopt the number of tokens that the tensors have.

        Raises:
            MismatchError: they do not all have as many.
        """
        sizes = {
            n: i.shape[0] for n, i in self._weights.items() if EMBEDDING.fullmatch(n) or HEAD.fullmatch(n)
        }
        first = next(iter(sizes))
        for name, size in sizes.items():
            if size != sizes[first]:
                raise MismatchError(
                    f"adapter {self._folder} makes {shown(first)} {sizes[first]} tokens large "
                    f"and {shown(name)} {size}",
                    hint="the adapter must hold both if tokens were added before it was trained",
                )
        self._configure("vocab_size", sizes[first])

    def _configure(self, key: str, value: object) -> None:
        """Change the configuration where it says something, else at its top."""
        text = self._config.get("text_config")
        nested = isinstance(text, dict) and key in text
        if nested:
            self._config["text_config"] = {**cast("dict[str, Any]", text), key: value}
        if not nested or key in self._config:
            self._config[key] = value
