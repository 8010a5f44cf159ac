"""The two tasks: labelled texts, and first letters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.probing.absorption import Absorbed, Decoder, Split, Truth, absorbed, probe_activations, split_latents
from saebench.probing.letters import LETTERS, letter_examples
from saebench.probing.prompts import Examples, text_examples
from saebench.probing.scores import Measured, counted
from saebench.probing.settings import AbsorptionConfig, ProbeConfig
from saebench.probing.sparse import Probed, probe_all, probe_few, sides
from saebench.probing.study import Material, Rows
from saebench.progress import Progress
from saebench.saes import SAE
from saebench.sparse import SparseLatents


@dataclass
class Texts:
    """k-sparse probing of the labelled texts of a file; its rows are named after the file."""

    path: Path
    cfg: ProbeConfig

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def examples(self, tokenizer: Any) -> Examples:
        """The texts that are taken."""
        return text_examples(self.path, tokenizer, self.cfg)

    def measure(self, material: Material, sae: SAE, latents: SparseLatents) -> tuple[Rows, Rows]:
        """Accuracies of a view's latents and of the activations, and the latents read."""
        examples = material.examples
        parts = sides(examples.label, examples.test, len(examples.classes), self.cfg.seed)
        found = {f"sparse_probing_{k}": probe_few(latents, examples.label, parts, k, self.cfg) for k in self.cfg.k}
        if self.cfg.all_latents:
            found["probing_latents"] = probe_all(latents, examples.label, examples.test, parts, self.cfg.ridge)
        details = [
            {"class": name, "score": score, "rank": rank, "latent": latent}
            for score, probed in found.items()
            for name, read in zip(examples.classes, probed.read, strict=True)
            for rank, latent in enumerate(read)
        ]
        found |= material.once("baselines", lambda: self.baselines(material))
        rows = [row for score, probed in found.items() for row in self.rows(score, probed, examples.classes)]
        return rows, details

    def baselines(self, material: Material) -> dict[str, Probed]:
        """The same probes of the activations."""
        examples, x = material.examples, material.x
        parts = sides(examples.label, examples.test, len(examples.classes), self.cfg.seed)
        found = {f"probing_x_{k}": probe_few(x, examples.label, parts, k, self.cfg) for k in self.cfg.k}
        return found | {"probing_x": probe_all(x, examples.label, examples.test, parts, self.cfg.ridge)}

    def rows(self, score: str, probed: Probed, classes: list[str]) -> Rows:
        """The accuracies of one kind of probe."""
        values = dict(zip(classes, probed.correct, strict=True))
        return Measured(score, values, dict.fromkeys(classes, 0.5), self.cfg.replicates, self.cfg.seed).rows(self.name)


@dataclass
class FirstLetters:
    """Absorption of first letters."""

    cfg: AbsorptionConfig
    name: str = "first_letter"

    def examples(self, tokenizer: Any) -> Examples:
        """The words of the vocabulary that are taken."""
        return letter_examples(tokenizer, self.cfg)

    def truth(self, material: Material) -> tuple[Truth, list[int]]:
        """The probes of the activations and the letters whose probe is good enough. Raises InputError if they are too few."""
        examples, cfg = material.examples, self.cfg
        truth, there = probe_activations(material.x, examples.y, examples.test, cfg.ridge)
        letters = [i for i in there if truth.f1[i] >= cfg.min_f1 and truth.f1[i] > 0]
        told = ", ".join(f"{LETTERS[i]} {truth.f1[i]:.2f}" for i in there)
        if len(letters) < cfg.min_letters:
            raise InputError(
                f"absorption.min_letters={cfg.min_letters}: {len(letters)} letters have a probe of the activations with an F1 of "
                f"{cfg.min_f1:g} ({told}); take more words, a larger model, or lower absorption.min_f1 or absorption.min_letters"
            )
        return truth, letters

    def measure(self, material: Material, sae: SAE, latents: SparseLatents) -> tuple[Rows, Rows]:
        """Absorption by letter, and what became of each word."""
        examples, cfg = material.examples, self.cfg
        truth, letters = material.once("truth", lambda: self.truth(material))
        split = split_latents(latents, examples.y, examples.test, letters, cfg)
        decoder = decoder_of(sae, material.x)
        found: dict[int, tuple[Absorbed, Absorbed]] = {}
        with Progress(len(letters), "letters", "absorption") as progress:
            for letter in letters:
                right = examples.test & (examples.label == letter) & (truth.scores[:, letter] > 0)
                given = (latents, material.x, decoder, truth.direction(letter), split[letter].latents)
                words = right.nonzero().squeeze(1)
                found[letter] = absorbed(*given, words, cfg), absorbed(*given, words, cfg, dealt=True)
                progress.advance()
        return self.rows(found, split, truth), details(found, split, examples)

    def rows(self, found: dict[int, tuple[Absorbed, Absorbed]], split: dict[int, Split], truth: Truth) -> Rows:
        """The scores by letter and over all."""
        rows: Rows = []
        for score, column in COLUMNS.items():
            values = {LETTERS[i]: getattr(real, column) for i, (real, _) in found.items()}
            chance = {LETTERS[i]: float(getattr(dealt, column).double().mean()) for i, (_, dealt) in found.items()}
            rows += Measured(score, values, chance, self.cfg.replicates, self.cfg.seed).rows(self.name)
        n = {LETTERS[i]: len(real.word) for i, (real, _) in found.items()}
        counts = {
            "split_latents": {LETTERS[i]: float(len(one.latents)) for i, one in split.items()},
            "split_f1": {LETTERS[i]: one.f1 for i, one in split.items()},
            "letter_f1": {LETTERS[i]: float(truth.f1[i]) for i in found},
        }
        return rows + [row for score, values in counts.items() for row in counted(self.name, score, values, n)]


COLUMNS = {
    "absorption_fraction": "fraction",
    "full_absorption": "full",
    "absorption_fraction_centred": "fraction_centred",
    "full_absorption_centred": "full_centred",
}


def decoder_of(sae: SAE, x: Tensor) -> Decoder:
    """The decoder of an SAE for examples with activations x [n, d_in]."""
    with torch.no_grad():
        seen = sae.normalise(x.to(sae.W_dec.device))
        origin = seen.undo(sae.b_dec.expand(len(seen.shift) if seen.shift.dim() > 1 else 1, -1))
        rows = sae.W_dec.double().cpu()  # [d_sae, d_in]
        return Decoder(rows, rows.norm(dim=1), seen.scale.reshape(-1, 1).double().cpu(), origin.double().cpu())


def details(found: dict[int, tuple[Absorbed, Absorbed]], split: dict[int, Split], examples: Examples) -> Rows:
    """A row for each word looked at."""
    rows: Rows = []
    for letter, (real, _) in found.items():
        own = " ".join(map(str, split[letter].latents))
        for i, number in enumerate(real.word.tolist()):
            row = {"letter": LETTERS[letter], "word": examples.names[number], "own_latents": own}
            row |= {"projection": float(real.projection[i]), "own_projection": float(real.own[i])}
            row |= {"strongest_latent": int(real.strongest[i])}
            row |= {score: float(getattr(real, column)[i]) for score, column in COLUMNS.items()}
            rows.append(row)
    return rows
