"""The questions a judge is asked about a latent, and how its answers are read. No torch.

Texts stand in the prompts as JSON strings, so that their line breaks and quotes cannot be taken for the prompt's own. There
is no system message, because many models know none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from saebench.interpret.contexts import LatentContexts
from saebench.interpret.judge import Message, Prompt, Reply

SCALE = 10  # activations are told and predicted on a scale from 0 to 10, which is the largest activation seen
THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A prompt, its kind (explanation or the name of a score), and how a reply is read.

    `read(text)` is the answer in a reply, None if it is broken; `form` says what a good reply consists of.
    """

    kind: str
    prompt: Prompt
    read: Callable[[str], Any]
    form: str

    def answer(self, reply: Reply) -> Any:
        """The answer in a reply, thoughts left out, or None if it is broken."""
        return self.read(THOUGHT.sub("", reply.text))

    def again(self, reply: Reply) -> Prompt:
        """The stricter second prompt after a broken reply."""
        said = THOUGHT.sub("", reply.text).strip() or "(no answer)"
        strict = (
            f"That was not in the form asked for. Reply with {self.form} and nothing else: no other word, no comment."
        )
        return Prompt((*self.prompt.messages, Message("assistant", said), Message("user", strict)), again=True)


def question(kind: str, text: str, read: Callable[[str], Any], form: str) -> Question:
    """A question of one message."""
    return Question(kind, Prompt((Message("user", text),)), read, form)


def explanation_question(latent: LatentContexts) -> Question:
    """What makes the latent active, from its `shown` contexts: active tokens marked, their activations given."""
    shown = []
    for i, context in enumerate(latent.shown, 1):
        active = [place for place, act in enumerate(context.acts) if act > 0]
        levels = (f"{quoted(context.texts[place])} {level(context.acts[place], latent.max_act)}" for place in active)
        shown.append(f"Text {i}: {quoted(marked(context.texts, active))}\nActivations: {', '.join(levels)}")
    text = (
        "A feature inside a language model is a number that is zero on most tokens of a text and positive on some. Below are "
        "texts on which one feature is active, as JSON strings. The tokens on which it is active stand between << and >>; "
        f"after each text these tokens are listed with their activations, on a scale from 1 to {SCALE}.\n\n"
        + "\n\n".join(shown)
        + "\n\nWhat makes this feature active? Look for what the marked tokens, and the words around them, have in common, and "
        "for what the strongest have that the weaker lack. Be specific and short: name the tokens or the concept, and the "
        "context if it matters; do not list the texts. End your reply with one line that begins with EXPLANATION: and holds "
        "your explanation in one sentence."
    )
    return question("explanation", text, read_explanation, "the one line that begins with EXPLANATION:")


def detection_question(explanation: str, texts: Sequence[str]) -> Question:
    """Which of the texts activate the latent."""
    text = (
        "A feature inside a language model is active on some tokens of some texts. This explains when:\n"
        f"{quoted(explanation)}\n\n"
        f"On which of the following {len(texts)} texts is the feature active, on at least one token?\n\n{listed(texts)}\n\n"
        + one_or_zero(len(texts), "if the feature is active on the text")
    )
    return question("detection", text, flags_reader(len(texts)), f"a JSON list of {len(texts)} numbers, each 1 or 0")


def fuzzing_question(explanation: str, texts: Sequence[str]) -> Question:
    """In which of the texts the marked tokens are those that activate the latent."""
    text = (
        "A feature inside a language model is active on some tokens of some texts. This explains when:\n"
        f"{quoted(explanation)}\n\n"
        f"In each of the following {len(texts)} texts some tokens stand between << and >>. Either they are the tokens on which "
        f"the feature is active, or they are wrong ones. Which texts are marked rightly?\n\n{listed(texts)}\n\n"
        + one_or_zero(len(texts), "if the marked tokens are the right ones")
    )
    return question("fuzzing", text, flags_reader(len(texts)), f"a JSON list of {len(texts)} numbers, each 1 or 0")


def simulation_question(explanation: str, texts: Sequence[str]) -> Question:
    """How active the latent is on each token, 0 to 10; tokens the reply does not name are 0, which spares counting them."""
    tokens = "\n".join(f"{i} {quoted(token)}" for i, token in enumerate(texts))
    text = (
        "A feature inside a language model is active on some tokens of some texts. This explains when:\n"
        f"{quoted(explanation)}\n\n"
        f"Here is a text, one numbered token a line, as JSON strings:\n\n{tokens}\n\n"
        f"Predict how active the feature is on each token, from 0 (not at all) to {SCALE} (as active as it ever is). Reply with "
        "only a JSON object from the numbers of the tokens you predict above 0 to your predictions, such as "
        '{"3": 10, "4": 2}; reply {} if you predict 0 everywhere.'
    )
    return question("simulation", text, levels_reader(len(texts)), f"a JSON object from token numbers to 0 to {SCALE}")


def one_or_zero(n: int, when: str) -> str:
    """The instruction to reply with a list of ones and zeros."""
    return f"Reply with only a JSON list of {n} numbers, one for each text in order: 1 {when}, 0 if not."


def listed(texts: Sequence[str]) -> str:
    """Numbered texts, one a line."""
    return "\n".join(f"Text {i}: {quoted(text)}" for i, text in enumerate(texts, 1))


def quoted(text: str) -> str:
    """The text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def marked(texts: Sequence[str], places: Collection[int]) -> str:
    """The text with the tokens at `places` between << and >>, neighbours together."""
    pieces = []
    for i, token in enumerate(texts):
        begins, ends = i in places and i - 1 not in places, i in places and i + 1 not in places
        pieces.append(("<<" if begins else "") + token + (">>" if ends else ""))
    return "".join(pieces)


def level(act: float, max_act: float) -> int:
    """A positive activation on the scale from 1 to SCALE."""
    return min(SCALE, max(1, round(SCALE * act / max_act)))


def read_explanation(text: str) -> str | None:
    """What follows the last EXPLANATION: on its line, or None."""
    found = re.findall(r"EXPLANATION:[*_ \t]*(.*\S)", text)
    cleaned = found[-1].strip("*_\"' \t") if found else ""
    return cleaned or None


def flags_reader(n: int) -> Callable[[str], list[bool] | None]:
    """A reader of the last JSON list in a reply: n ones and zeros (or true and false), else None."""

    def read(text: str) -> list[bool] | None:
        values = last_json(r"\[[^\[\]]*\]", text)
        good = isinstance(values, list) and len(values) == n and all(is_flag(value) for value in values)
        return [bool(value) for value in values] if good else None

    return read


def is_flag(value: Any) -> bool:
    """Whether a JSON value is 0, 1, false or true."""
    return isinstance(value, int) and value in (0, 1)


def levels_reader(n: int) -> Callable[[str], list[float] | None]:
    """A reader of the last JSON object in a reply: token numbers below n to numbers from 0 to SCALE, else None."""

    def read(text: str) -> list[float] | None:
        values = last_json(r"\{[^{}]*\}", text)
        if not isinstance(values, dict) or not all(is_level(value) for value in values.values()):
            return None
        if not all(place.isdecimal() and int(place) < n for place in values):
            return None
        levels = [0.0] * n
        for place, value in values.items():
            levels[int(place)] = float(value)
        return levels

    return read


def is_level(value: Any) -> bool:
    """Whether a JSON value is a number from 0 to SCALE."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= SCALE


def last_json(pattern: str, text: str) -> Any:
    """The last match of `pattern` as JSON, or None if there is none or it is not JSON."""
    found = re.findall(pattern, text)
    try:
        return json.loads(found[-1]) if found else None
    except ValueError:
        return None
