"""A judge in a folder: any causal language model of transformers, read safely and decoded greedily in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from saebench.checks import InputError, require
from saebench.config import ModelConfig
from saebench.devices import resolve_device, resolve_dtype
from saebench.interpret.judge import REFUSED, JudgeConfig, Message, Prompt, Reply
from saebench.lm import ModelInfo, find_config, load_weights, one_line_errors
from saebench.progress import say


class LocalJudge:
    """The model in the folder `cfg.path` on `device`; its tokenizer's chat template is used if there is one.

    Prompts that do not fit beside a reply of `cfg.max_tokens` are refused. In bfloat16 a reply may depend on the prompts
    that share its batch. Raises InputError for a folder without a readable model.
    """

    def __init__(self, cfg: JudgeConfig, device: str = "auto") -> None:
        self.cfg, self.device = cfg, resolve_device(device)
        dtype = resolve_dtype(cfg.dtype, self.device)
        try:
            self.model, self.tokenizer, fingerprint = load(cfg, dtype)
        except InputError as error:  # the loader's keys are model.*, the user typed judge.*
            raise InputError(str(error).replace("model.path", "judge.path")) from error
        self.model = self.model.to(self.device).eval()
        config = self.model.config.get_text_config()
        self.positions = int(getattr(config, "max_position_embeddings", 0)) or None
        ends = self.model.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        served = {"name": cfg.name} if cfg.name else {"weights": fingerprint}
        self.identity: dict[str, Any] = {**served, "dtype": str(dtype), "sampling": cfg.sampling}

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """Replies in batches of prompts of similar length, the longest first, so that lack of memory shows at once."""
        tokens = [self.encode(prompt) for prompt in prompts]
        limit = (self.positions or 1 << 62) - self.cfg.max_tokens
        refused = [i for i, ids in enumerate(tokens) if len(ids) > limit]
        if refused:
            longest = max(len(tokens[i]) for i in refused)
            room = f"of its {self.positions} positions judge.max_tokens={self.cfg.max_tokens} are the reply's"
            say(f"judge: {len(refused)} prompts of up to {longest} tokens do not fit into the model ({room})")
        yield from ((i, Reply("", 0, 0, REFUSED)) for i in refused)
        order = sorted(set(range(len(tokens))) - set(refused), key=lambda i: (-len(tokens[i]), i))
        for start in range(0, len(order), self.cfg.batch):
            places = order[start : start + self.cfg.batch]
            yield from zip(places, self.generate([tokens[i] for i in places]), strict=True)

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a conversation up to where the judge's reply begins."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(plain_text(prompt.messages))["input_ids"]
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def generate(self, batch: list[list[int]]) -> list[Reply]:
        """Greedy replies to prompts of tokens, padded on the left."""
        width, pad = max(map(len, batch)), min(self.ends, default=0)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])  # [b, t]
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])  # [b, t]
        try:
            out = self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=self.cfg.max_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                use_cache=True,
                pad_token_id=pad,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise InputError(f"judge.batch={self.cfg.batch}: the GPU has too little memory; lower it") from error
        rows = out[:, width:].tolist()
        return [self.reply(len(prompt), row) for prompt, row in zip(batch, rows, strict=True)]

    def reply(self, tokens_in: int, row: list[int]) -> Reply:
        """The reply in a row of generated tokens: what comes before the first that ends it."""
        end = next((i for i, token in enumerate(row) if token in self.ends), None)
        text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
        return Reply(text, tokens_in, len(row) if end is None else end + 1, "length" if end is None else "stop")


def load(cfg: JudgeConfig, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
    """Model (on the CPU), tokenizer and fingerprint. Raises InputError."""
    from transformers import AutoConfig, AutoTokenizer

    found = ModelConfig("judge", str(cfg.path), layer=0, site="resid_post", dtype=cfg.dtype, revision=None, batch=1)
    folder = cfg.path == "embedded" or Path(found.path).expanduser().is_dir()
    require(folder, f"model.path={cfg.path}: there is no such folder; give one that holds the judge's model")
    source, revision, file = find_config(found)
    with one_line_errors(found):
        try:
            config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False)
        except ValueError as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"model.path={cfg.path}: transformers does not know this model ({reason})") from error
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    text = config.get_text_config()
    positions = int(getattr(text, "max_position_embeddings", 0))
    info = ModelInfo(source, revision, config, text.hidden_size, text.num_hidden_layers, text.vocab_size, positions)
    return load_weights(found, info, dtype), tokenizer, info.fingerprint()


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for a model without a chat template."""
    turns = [f"{'Question' if m.role == 'user' else 'Answer'}: {m.content}" for m in messages]
    return "\n\n".join([*turns, "Answer:"])
