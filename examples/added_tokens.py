"""Merge two chat models of different vocabularies, and let the merge speak with the tokens that only one has.

Both are siblings of SmolLM2-135M-Instruct:

``chatml``  has skill A of the demo. Its tokenizer is the base's, with the ChatML template.
``llama3``  has three more tokens, the markers of Llama-3's chat format, and that format's template. Nothing
            but the rows of these tokens was trained: they make the model end its replies with
            ``<|eot_id|>``. The rows lie in ``added_tokens/rows.safetensors``.

The merges in ``.cache/added_tokens/`` have the tokens of both models and the Llama-3 template. All models
answer held-out prompts greedily, and so does ``untrained``, which is ``llama3`` with the rows that training
started from. The exit status is 1 if a number misses what is promised below.

    python examples/added_tokens.py          # merge and measure, two minutes on one CPU core
    python examples/added_tokens.py train    # train the rows anew, two minutes too
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from chat import chat_prompt, load_tokenizer
from fetch_base import CACHE, FetchError, fetch_base
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from skills import Part, draw, score
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from meldkit import merge

EXAMPLES = Path(__file__).resolve().parent
WORK = CACHE / "added_tokens"
ROWS = EXAMPLES / "added_tokens" / "rows.safetensors"

END = "<|eot_id|>"
#: The added tokens, each with the text whose last token's row its own row starts from.
TOKENS = {"<|start_header_id|>": "<|im_start|>", "<|end_header_id|>": "\n", END: "<|im_end|>"}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"parameters": {"weight": 0.5}},
    "slerp": {"base_model": "chatml", "parameters": {"t": 0.5}},
    "ties": {"base_model": "base", "parameters": {"weight": 0.65, "density": 0.5, "normalize": False}},
}

NUM_STEPS = 60
BATCH_SIZE = 8
LEARNING_RATE = 1e-2
IGNORED = -100  # cross_entropy skips this label

LEAST_ENDED = 0.8  # part of a merge's replies, to prompts of either sibling's kind, that the added token ends
LEAST_SCORE = 50  # percent of skill A's prompts that a merge answers rightly, under the other's template


# ---- what is asked


def question(rng: Random, part: Part) -> tuple[str, str]:
    """A question with a short answer; countries, names and first numbers belong to one part."""
    match rng.randrange(3):
        case 0:
            country, city = rng.choice(CAPITALS[part].split()).split(":")
            return f"What is the capital of {country}?", f"The capital of {country} is {city}."
        case 1:
            name = rng.choice(NAMES[part].split())
            return f"Say hello to {name}.", f"Hello, {name}!"
        case _:
            a, b = rng.randint(1, 9) + (10 if part == "test" else 0), rng.randint(1, 9)
            return f"What is {a} + {b}?", f"{a} + {b} = {a + b}"


def training_examples(count: int) -> list[tuple[str, str]]:
    """Questions with answers, always the same ones; some come again."""
    rng = Random("added tokens train")
    return [question(rng, "train") for _ in range(count)]


def held_out_questions(count: int) -> list[str]:
    """Different questions, always the same ones, with countries, names and numbers that training lacks."""
    rng = Random("added tokens test")
    asked: dict[str, None] = {}
    while len(asked) < count:
        asked[question(rng, "test")[0]] = None
    return list(asked)


CAPITALS: dict[Part, str] = {
    "train": """
        France:Paris Japan:Tokyo Italy:Rome Spain:Madrid Egypt:Cairo Norway:Oslo Peru:Lima Greece:Athens
        Austria:Vienna Ireland:Dublin
    """,
    "test": """
        Germany:Berlin Portugal:Lisbon Cuba:Havana Kenya:Nairobi Poland:Warsaw Sweden:Stockholm
        Finland:Helsinki Russia:Moscow China:Beijing Chile:Santiago
    """,
}
NAMES: dict[Part, str] = {
    "train": "Mia Tom Lena Oscar Clara Hugo Nora Paul",
    "test": "Anna Victor Selma Theo Ingrid Louis",
}
#: Of kinds that nothing was trained on.
OTHER_QUESTIONS = (
    "Name a color.",
    "Greet Tom in one short sentence.",
    "Name one fruit.",
    "Translate to French: dog",
    "Write the word sugar.",
    "Who wrote Hamlet?",
    "What is water made of?",
    "Name a big city.",
)


# ---- training


def train() -> dict[str, Tensor]:
    """Train the rows of the added tokens, and nothing else; the loss is on the replies and what ends them."""
    model = load_model(fetch_base()).requires_grad_(False)
    tokenizer = llama3_tokenizer()
    table = model.get_input_embeddings().weight
    rows = first_rows(table).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / NUM_STEPS)
    examples = training_examples(NUM_STEPS * BATCH_SIZE)

    start = time.perf_counter()
    for step in range(NUM_STEPS):
        batch, labels = tokenized(tokenizer, examples[step * BATCH_SIZE : (step + 1) * BATCH_SIZE])
        loss = reply_loss(model, table, rows, batch, labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step + 1:2}  loss {loss.item():.4f}  {seconds:4.0f} s", flush=True)
    return {token: row.detach().bfloat16() for token, row in zip(TOKENS, rows, strict=True)}


def first_rows(table: Tensor) -> Tensor:
    """The rows of the added tokens before training, shape (num_tokens, hidden)."""
    tokenizer = AutoTokenizer.from_pretrained(fetch_base())
    return table[[tokenizer(text).input_ids[-1] for text in TOKENS.values()]].clone()


def tokenized(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[tuple[str, str]]
) -> tuple[dict[str, Tensor], Tensor]:
    """A batch, padded on the left so that all replies end in the last position; and the replies as labels."""
    prompts = [tokenizer(chat_prompt(tokenizer, asked)).input_ids for asked, _ in examples]
    replies = [tokenizer(answer + END).input_ids for _, answer in examples]
    longest = max(map(len, replies))
    labels = torch.tensor([[IGNORED] * (longest - len(reply)) + reply for reply in replies])
    batch = tokenizer.pad(
        {"input_ids": [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]},
        return_tensors="pt",
    )
    return batch, labels


def reply_loss(
    model: PreTrainedModel, table: Tensor, rows: Tensor, batch: dict[str, Tensor], labels: Tensor
) -> Tensor:
    """Cross-entropy of the labels; embedding and head are the table with the added rows behind it."""
    ids = batch["input_ids"]
    added = (ids - len(table)).clamp(min=0)
    embedded = torch.where((ids >= len(table))[..., None], rows[added], table[ids.clamp(max=len(table) - 1)])
    hidden = model.model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).last_hidden_state
    counted = labels != IGNORED
    before = hidden[:, -labels.shape[1] - 1 : -1][counted]  # a position says what comes next
    return cross_entropy(torch.cat([before @ table.T, before @ rows.T], dim=1), labels[counted])


# ---- the siblings


def write_base(folder: Path) -> Path:
    """The model that both siblings come from."""
    return Path(shutil.copytree(fetch_base(), folder, dirs_exist_ok=True))


def write_chatml(folder: Path) -> Path:
    """The base with the adapter of skill A in its weights, and with the base's tokenizer files."""
    base = fetch_base()
    model = PeftModel.from_pretrained(load_model(base), EXAMPLES / "adapters" / "skill_a").merge_and_unload()
    model.bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder / name)
    return folder


def write_llama3(folder: Path, rows: dict[str, Tensor]) -> Path:
    """The base with the added tokens' rows behind its embedding, as transformers resizes it."""
    model = AutoModelForCausalLM.from_pretrained(fetch_base(), dtype=torch.bfloat16)
    tokenizer = llama3_tokenizer()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for token, row in rows.items():
            model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(token)] = row
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama3_tokenizer() -> PreTrainedTokenizerBase:
    """The base's tokenizer with the added tokens and the Llama-3 template."""
    tokenizer = load_tokenizer(fetch_base())
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    tokenizer.eos_token = END
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def recipe(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for models that lie side by side in a folder: the tokens of all, and the Llama-3 template."""
    said = RECIPES[name]
    models = [{"model": str(folder / model)} for model in ("chatml", "llama3")]
    base = {"base_model": str(folder / said["base_model"])} if "base_model" in said else {}
    tokens = {"tokenizer": {"source": "union"}, "chat_template": "llama3"}
    return {"merge_method": name, "models": models, **said, **base, **tokens, **changes}


def load_model(folder: Path) -> PreTrainedModel:
    """Load a model for computing in float32, the type CPUs are fast at."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# ---- what is measured


@torch.inference_mode()
def replies(folder: Path, asked: Sequence[str], max_new_tokens: int = 32) -> list[str]:
    """Greedy replies of the model in a folder, as its own files say: template and what ends a text.

    Special tokens are kept, up to the one that ended the reply.
    """
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    batch = tokenizer([chat_prompt(tokenizer, text) for text in asked], return_tensors="pt", padding=True)
    output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    ends = model.generation_config.eos_token_id
    return [
        tokenizer.decode(until(ids, [ends] if isinstance(ends, int) else ends))
        for ids in output[:, batch["input_ids"].shape[1] :].tolist()
    ]


def until(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """Tokens up to the first that is an end, which is kept."""
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))]


def ended(texts: Sequence[str]) -> float:
    """The part of replies that the added token ends, and that hold no other added token before it."""
    return sum(
        text.endswith(END) and not any(token in text.removesuffix(END) for token in TOKENS) for text in texts
    ) / len(texts)


class Measured(NamedTuple):
    """What a model did: the parts that the added token ends, and the score in percent of skill A."""

    records_ended: float
    questions_ended: float
    others_ended: float
    score: float
    example: str


def measure(folder: Path, count: int = 32) -> Measured:
    """Ask the model in a folder `count` prompts of skill A and of the rows' training, and some of neither."""
    records = draw("skill_a", "test", count)
    prompts = [record.prompt for record in records]
    texts = replies(folder, [*prompts, *held_out_questions(count), *OTHER_QUESTIONS])
    of_records = texts[:count]
    answers = [text.partition("<|")[0] for text in of_records]
    return Measured(
        ended(of_records),
        ended(texts[count : 2 * count]),
        ended(texts[2 * count :]),
        score(answers, records),
        f"{prompts[0]} → {of_records[0]}",
    )


# ---- the program


def main() -> None:
    """Write the siblings, merge them, and measure all."""
    logging.disable_progress_bar()
    write_base(WORK / "base")
    write_chatml(WORK / "chatml")
    write_llama3(WORK / "llama3", load_file(ROWS))
    write_llama3(WORK / "untrained", untrained())
    measured: dict[str, Measured] = {}
    for name in ("chatml", "untrained", "llama3", *RECIPES):
        if name in RECIPES:
            shutil.rmtree(WORK / name, ignore_errors=True)
            merge(recipe(name, WORK), WORK / name)
        measured[name] = measure(WORK / name)

    table = Table(title=f"held-out prompts whose reply {END} ends; exact matches of skill A")
    for title in ("model", "records", "questions", "other kinds", "skill A"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for name, found in measured.items():
        parts = (found.records_ended, found.questions_ended, found.others_ended, found.score / 100)
        table.add_row(name, *(f"{part:.0%}" for part in parts))
    Console().print(table)
    for name in RECIPES:
        print(f"{name}: {measured[name].example}")
    if missed := broken_promises(measured):
        sys.exit("\n".join(missed))


def untrained() -> dict[str, Tensor]:
    """The rows of the added tokens before training."""
    table = load_model(fetch_base()).get_input_embeddings().weight.detach()
    return dict(zip(TOKENS, first_rows(table).bfloat16(), strict=True))


def broken_promises(measured: dict[str, Measured]) -> list[str]:
    """One line for each number that is worse than promised."""
    missed = [
        f"{END} ends {part:.0%} of the replies of {name}, promised are {LEAST_ENDED:.0%}"
        for name in RECIPES
        for part in (measured[name].records_ended, measured[name].questions_ended)
        if part < LEAST_ENDED
    ]
    missed += [
        f"{name} answers {measured[name].score:.0f} % of skill A's prompts, promised are {LEAST_SCORE} %"
        for name in RECIPES
        if measured[name].score < LEAST_SCORE
    ]
    return missed


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["train"]:
            save_file(train(), ROWS)
        else:
            main()
    except FetchError as error:
        sys.exit(f"error: {error}")
