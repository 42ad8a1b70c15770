"""Ask a chat model many short questions at once."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left, so that all replies of a batch start at the same position."""
    return AutoTokenizer.from_pretrained(model_folder, padding_side="left")


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The text of a conversation with one question, up to where the reply starts."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )


@torch.inference_mode()
def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    max_new_tokens: int = 24,
) -> list[str]:
    """Greedy replies to all questions, generated as one batch."""
    prompts = [chat_prompt(tokenizer, question) for question in questions]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
