"""Train the demo's two LoRA adapters, ``adapters/skill_a`` and ``adapters/skill_b``.

A plain loop: AdamW, linear decay, loss on the reply only. One thing is unusual. A merge applies an adapter at
part of its strength, and a gradient applies it unevenly over depth, so the adapters are trained to bear that:
before every step their scales are drawn anew, on even steps one factor in [0.4, 1] for all matrices, on odd
steps a factor in [0, 1] for each matrix.

    python examples/train_adapters.py            # both, some minutes each on two CPU cores
    python examples/train_adapters.py skill_b
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from chat import ask, chat_prompt, load_tokenizer
from fetch_base import fetch_base
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from skills import SKILLS, Example, draw, score
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

ADAPTERS = Path(__file__).resolve().parent / "adapters"
SEED = 0
NUM_STEPS = 120
NUM_WARMUP_STEPS = 20
BATCH_SIZE = 16
LEARNING_RATE = 1e-3
IGNORED = -100  # cross_entropy skips this label
LORA = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    task_type="CAUSAL_LM",
)


def train(skill: str) -> None:
    """Train one adapter, save it, and print its scores on held-out prompts at full and at half strength."""
    torch.manual_seed(SEED)
    rng = Random(SEED)
    base = fetch_base()
    tokenizer = load_tokenizer(base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LORA)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    examples = draw(skill, "train", NUM_STEPS * BATCH_SIZE)

    start = time.perf_counter()
    model.train()
    for step in range(NUM_STEPS):
        for_all = rng.uniform(0.4, 1)
        set_strengths(layers, [for_all if step % 2 == 0 else rng.uniform(0, 1) for _ in layers])
        loss = reply_loss(model, tokenizer, examples[step * BATCH_SIZE : (step + 1) * BATCH_SIZE])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            seconds = time.perf_counter() - start
            print(f"{skill}  step {step + 1:3}  loss {loss.item():.4f}  {seconds:4.0f} s", flush=True)

    model.eval()
    tests = draw(skill, "test", 64)
    for strength in (1.0, 0.5):
        set_strengths(layers, [strength] * len(layers))
        replies = ask(model, tokenizer, [test.prompt for test in tests])
        print(f"{skill}  held-out score {score(replies, tests):.1f} at strength {strength}", flush=True)
    save(model, ADAPTERS / skill)


def learning_rate_factor(step: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / NUM_WARMUP_STEPS, 1 - step / NUM_STEPS)


def set_strengths(layers: Sequence[LoraLayer], strengths: Sequence[float]) -> None:
    """Set each LoRA matrix pair to a fraction of its full effect."""
    for layer, strength in zip(layers, strengths, strict=True):
        layer.set_scale("default", strength)


def reply_loss(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> torch.Tensor:
    """Cross-entropy of the answers' tokens given their prompts, computed in bf16 where autocast allows it."""
    prompts = [tokenizer(chat_prompt(tokenizer, example.prompt)).input_ids for example in examples]
    replies = [tokenizer(example.answer + tokenizer.eos_token).input_ids for example in examples]
    longest = max(len(reply) for reply in replies)
    labels = torch.tensor([[IGNORED] * (longest - len(reply)) + reply for reply in replies])
    batch = tokenizer.pad(
        {"input_ids": [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]},
        return_tensors="pt",
    )
    with torch.autocast("cpu", torch.bfloat16):
        # Padding is on the left: all replies end in the last position, and earlier logits are not needed.
        logits = model(**batch, logits_to_keep=longest + 1).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def save(model: PeftModel, folder: Path) -> None:
    """Save the adapter in PEFT's format, in half precision and without this machine's paths."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = "SmolLM2-135M-Instruct"
    model.half().save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty form; adapters/README.md says what these are


if __name__ == "__main__":
    for name in sys.argv[1:] or SKILLS:
        train(name)
