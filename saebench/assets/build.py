"""Train the embedded model on the documentation of the running Python: `python -m saebench.assets.build [--out DIR]`.

Tokeniser, weights and a model card with what was measured go into one folder. Everything is seeded; another Python
(another text), another torch, machine or number of threads still give other weights. Imported only when run.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from saebench.assets import TINY_GPT2
from saebench.assets.card import card
from saebench.progress import Progress, say
from saebench.pythondocs import documents, fingerprint
from saebench.store import write_json

SEED = 0
BOS, BOS_ID = "<|endoftext|>", 0
VOCAB = 2048
D_MODEL, LAYERS, HEADS, POSITIONS = 128, 4, 4, 256
HELD_OUT = 0.1  # of the documents
BLOCK = 128  # tokens; every LONG_EVERY-th batch has blocks of POSITIONS instead, so that all positions are trained
LONG_EVERY = 4
BATCH = 1024  # tokens
STEPS = 5000
LR, WARMUP, WEIGHT_DECAY, BETAS, CLIP = 4e-3, 200, 0.1, (0.9, 0.95), 1.0
THREADS = 2
SETTING = {
    "bos": BOS,
    "vocab": VOCAB,
    "d_model": D_MODEL,
    "layers": LAYERS,
    "heads": HEADS,
    "positions": POSITIONS,
    "block": BLOCK,
    "seed": SEED,
    "python": platform.python_version(),
    "torch": torch.__version__,
}


def main() -> None:
    """Build into --out, by default over the model that ships with saebench."""
    parser = argparse.ArgumentParser(description="Train the embedded model; about 10 minutes on two idle cores.")
    parser.add_argument("--out", type=Path, default=TINY_GPT2, metavar="DIR")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    build(documents(), options.out, options.steps)


def build(texts: list[str], out: Path, steps: int) -> None:
    """Train tokeniser and model on nine tenths of `texts` for `steps` batches, measure on the rest, and fill `out`."""
    train_texts, heldout_texts = split(texts)
    tokenizer = train_tokenizer(train_texts)
    train_tokens, heldout_tokens = (encode(tokenizer, part) for part in (train_texts, heldout_texts))
    say(f"{len(train_tokens):,} tokens to train on, {len(heldout_tokens):,} held out")
    began = time.monotonic()
    model = train_model(train_tokens, steps)
    facts = {
        "minutes": (time.monotonic() - began) / 60,
        "threads": torch.get_num_threads(),
        "tokens_seen": steps * BATCH,
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "fingerprint": fingerprint(texts),
        "characters_per_token": sum(map(len, heldout_texts)) / len(heldout_tokens),
    }
    facts |= measure(model, train_tokens, heldout_tokens)
    save(tokenizer, model, out)
    (out / "README.md").write_text(card(SETTING | facts), encoding="utf-8")
    say(f"held-out cross-entropy {facts['losses'].mean():.3f} nats, unigram {facts['unigram']:.3f}; written to {out}")


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Training and held-out documents, drawn by SEED, each in its shuffled order."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SEED)).tolist()
    held_out = math.ceil(HELD_OUT * len(texts))
    return [texts[i] for i in order[held_out:]], [texts[i] for i in order[:held_out]]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with VOCAB entries, BOS the first of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(BOS) == BOS_ID
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """The tokens of all documents in a row, BOS between them: int64 [n_tokens]."""
    ids = [token for encoding in tokenizer.encode_batch(texts) for token in [BOS_ID, *encoding.ids]]
    return torch.tensor(ids[1:])  # [n_tokens]


def train_model(tokens: Tensor, steps: int) -> GPT2LMHeadModel:
    """A float32 GPT-2 trained on random blocks of `tokens` [n_tokens], with a warm-up and a cosine decay to 0."""
    model = new_model().train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    with Progress(steps * BATCH, "tokens", "tiny-gpt2") as progress:
        for step, blocks in enumerate(batches(tokens, steps)):
            for group in optimizer.param_groups:
                group["lr"] = LR * min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            loss = losses(model, blocks).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(BATCH, f"loss {loss.item():.3f}")
    return model.eval()


def new_model() -> GPT2LMHeadModel:
    """An untrained model, its weights drawn by SEED."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=POSITIONS,
        n_embd=D_MODEL,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        use_cache=False,
    )
    torch.manual_seed(SEED)
    return GPT2LMHeadModel(config)


def batches(tokens: Tensor, steps: int) -> Iterator[Tensor]:
    """`steps` batches [BATCH / length, length]: random pieces of `tokens` [n_tokens], each after a BOS."""
    generator = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        length = POSITIONS if step % LONG_EVERY == LONG_EVERY - 1 else BLOCK
        starts = torch.randint(len(tokens) - length + 2, (BATCH // length, 1), generator=generator)
        yield F.pad(tokens[starts + torch.arange(length - 1)], (1, 0), value=BOS_ID)


def losses(model: GPT2LMHeadModel, blocks: Tensor) -> Tensor:
    """Cross-entropy in nats of each next token of `blocks` [n, length]: [n, length - 1]."""
    logits = model(blocks).logits[:, :-1]  # [n, length - 1, VOCAB]
    return F.cross_entropy(logits.transpose(1, 2), blocks[:, 1:], reduction="none")


@torch.no_grad()
def position_losses(model: GPT2LMHeadModel, tokens: Tensor, length: int) -> Tensor:
    """Mean cross-entropy in nats at each position of blocks of `length` cut from `tokens` [n_tokens]: [length - 1]."""
    n = len(tokens) // (length - 1)
    blocks = F.pad(tokens[: n * (length - 1)].view(n, length - 1), (1, 0), value=BOS_ID)  # [n, length]
    return torch.cat([losses(model, part) for part in blocks.split(BATCH // length)]).mean(0)


def unigram_cross_entropy(train_tokens: Tensor, heldout_tokens: Tensor) -> float:
    """Nats per held-out token under the training tokens' frequencies, add-one smoothed."""
    counts = torch.bincount(train_tokens, minlength=VOCAB).double() + 1
    return -(counts / counts.sum()).log()[heldout_tokens].mean().item()


def measure(model: GPT2LMHeadModel, train_tokens: Tensor, heldout_tokens: Tensor) -> dict[str, Any]:
    """What the card says of the model: its size, the tokens it had, and held-out cross-entropies in nats per token."""
    return {
        "parameters": model.num_parameters(),
        "train_tokens": len(train_tokens),
        "heldout_tokens": len(heldout_tokens),
        "unigram": unigram_cross_entropy(train_tokens, heldout_tokens),
        "losses": position_losses(model, heldout_tokens, BLOCK),
        "long_losses": position_losses(model, heldout_tokens, POSITIONS),
    }


def save(tokenizer: Tokenizer, model: GPT2LMHeadModel, out: Path) -> None:
    """Write tokeniser, configuration and float32 weights into `out` as transformers 4 and 5 read them."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    special = {"bos_token": BOS, "eos_token": BOS, "clean_up_tokenization_spaces": False}
    write_json(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
