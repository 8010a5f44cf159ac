"""The model card of the embedded model, written from what `build` measured."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# tiny-gpt2

The language model that ships with saebench, so that everything can be tried and tested without a network: a GPT-2 of
{parameters:,} parameters ({layers} layers, {heads} heads, d_model {d_model}, {positions} positions, vocabulary {vocab}, tied
embeddings), float32, trained by this project on the documentation of Python. It knows nothing else: use it to exercise
code and to compare methods, not to draw conclusions about language models.

| | |
|---|---|
| Data | {documents} documents, {characters:,} characters: `saebench.pythondocs.documents()` under Python {python} |
| SHA-256 of the data | `{fingerprint}` |
| Split | by document, seed {seed}: {train_tokens:,} training tokens, {heldout_tokens:,} held out |
| Tokeniser | byte-level BPE trained on the training documents; {characters_per_token:.2f} characters a held-out token |
| Special token | `{bos}`: begins every block, parts documents |
| Training | {tokens_seen:,} tokens ({epochs:.1f} times the training tokens), seed {seed}, {minutes:.0f} minutes \
of wall clock with {threads} threads, torch {torch} |
| Held-out cross-entropy | **{loss:.3f} nats per token** in blocks of {block} \
({long_loss:.3f} in blocks of {positions}) |
| Unigram cross-entropy | {unigram:.3f} nats per token: the same text under training frequencies, add-one smoothed |

Held-out cross-entropy by the position of the predicting token (position 0 is the special token: a prediction from
nothing), in blocks of {positions}:

| positions | nats per token |
|---|---|
{positions_table}

The held-out documents share no paragraph of 40 characters or more with the training documents, but describe the same
library. The data source `python-docs` draws its own held-out documents, most of which this model was trained on: a
cross-entropy measured there is lower than the one above. Another Python version has a slightly different text.

Made by `python -m saebench.assets.build`, which also wrote this card. Blocks were random pieces of the training text,
each after the special token: three batches in four of {block} tokens, the fourth of {positions}. The same seed, text,
torch, machine and number of threads give the same weights; a change of any of them gives others.

The text is the documentation of Python, copyright Python Software Foundation, under the PSF licence; it is read from
the Python that runs and is not part of this folder. The weights are under the project's licence, MIT.
"""


def card(facts: dict[str, Any]) -> str:
    """The card in Markdown; `losses` and `long_losses` are nats by position, the rest of `facts` are plain values."""
    means = {"loss": facts["losses"].mean().item(), "long_loss": facts["long_losses"].mean().item()}
    epochs = facts["tokens_seen"] / facts["train_tokens"]
    return CARD.format(**facts, **means, epochs=epochs, positions_table=positions_table(facts["long_losses"]))


def positions_table(losses: Tensor) -> str:
    """Mean nats at position 0, then in ranges that double in length, as rows of Markdown; losses [length - 1]."""
    bounds = [0, 1]
    while bounds[-1] < len(losses):
        bounds.append(min(2 * bounds[-1], len(losses)))
    return "\n".join(f"| {a} to {b - 1} | {losses[a:b].mean().item():.3f} |" for a, b in pairwise(bounds))
