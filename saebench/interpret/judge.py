"""A judge: a language model that is asked questions in words, behind an OpenAI-compatible endpoint or in a local folder.

What a judge is (`Judge`), how it is chosen (`JudgeConfig`), what it costs (`Usage`). No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from saebench.checks import InputError, at_least, one_of, require

BYTES_PER_TOKEN = 4  # of English in UTF-8, for estimates only
REFUSED = "refused"  # the `finish` of a reply that was never made: the prompt is too long or was filtered


class Message(NamedTuple):
    """One turn of a conversation; `role` is user or assistant (many models know no system role)."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """The conversation to be answered; the last message is the user's. `again`: it repeats a question, for progress only."""

    messages: tuple[Message, ...]
    again: bool = False

    @property
    def tokens(self) -> int:
        """About how many tokens it has: a quarter of its bytes and four a message."""
        return sum(4 + len(m.content.encode()) // BYTES_PER_TOKEN for m in self.messages)


@dataclass(frozen=True)
class Reply:
    """What a judge answered, the tokens it read and wrote, and why it stopped (`stop`, `length`, ... or REFUSED)."""

    text: str
    tokens_in: int
    tokens_out: int
    finish: str = "stop"


class Judge(Protocol):
    """Whoever answers prompts, in their order."""

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply for each prompt. Raises InputError where the user has to act (key, URL, model, quota, time-out)."""
        ...


class Backend(Protocol):
    """A judge without memory: `identity` tells whose replies they are and how they were sampled (JSON-ready)."""

    identity: dict[str, Any]

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """The place of a prompt and its reply, as they come. Raises InputError as `Judge.ask` does."""
        ...


@dataclass
class JudgeConfig:
    """Which judge is asked, how fast, and at what price: an endpoint (`base_url`, `model`) or a folder (`path`).

    The key of an endpoint is read from the environment variable named `key_env` and kept nowhere else.
    """

    model: str | None = None  # the endpoint's name for it
    base_url: str = "https://api.openai.com/v1"
    key_env: str | None = "OPENAI_API_KEY"  # None: the endpoint asks for no key
    path: str | None = None  # a folder with a transformers model, used instead of an endpoint
    name: str | None = None  # known by it to the cache, wherever it is served; None: by base_url and model
    temperature: float | None = 0.0  # None: not sent, for models that refuse it; a local judge is always greedy
    max_tokens: int = 500  # of a reply, thinking included
    max_tokens_key: str = "max_tokens"  # newer OpenAI models want max_completion_tokens
    concurrency: int = 16  # requests under way at once
    timeout_s: float = 120.0  # of one request
    retries: int = 6  # after 429, 5xx, time-outs and lost connections
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    price_in: float | None = None  # dollars per million tokens
    price_out: float | None = None
    batch: int = 8  # prompts in a forward pass of a local judge
    dtype: str = "auto"  # of a local judge
    broken_limit: int = 20  # stop if so many questions of one kind, the first, all had broken replies; 0: never

    def __post_init__(self) -> None:
        for key in ("max_tokens", "concurrency", "batch"):
            at_least(f"judge.{key}", getattr(self, key), 1)
        for key in ("retries", "broken_limit", "temperature", "price_in", "price_out"):
            at_least(f"judge.{key}", getattr(self, key), 0)
        for key in ("timeout_s", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, key)
            require(value is None or value > 0, f"judge.{key}={value}: must be positive")
        one_of("judge.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        one_of("judge.max_tokens_key", self.max_tokens_key, ("max_tokens", "max_completion_tokens"))
        both = (self.price_in is None) == (self.price_out is None)
        require(both, f"judge.price_in={self.price_in} judge.price_out={self.price_out}: give both or neither")
        self.check_local() if self.path is not None else self.check_endpoint()

    def check_local(self) -> None:
        """Raise InputError for keys that a local judge does not know."""
        require(self.model is None, f"judge.model={self.model}: judge.path is given too; give one of them")
        greedy = f"judge.temperature={self.temperature}: a local judge is greedy; use judge.temperature=0"
        require(not self.temperature, greedy)

    def check_endpoint(self) -> None:
        """Raise InputError for an endpoint without a model, and for a URL that cannot be one or that holds a secret."""
        require(bool(self.model), "judge.model: give the endpoint's model, or the folder of a local one (judge.path)")
        url = split_url(self.base_url)
        secret = bool(url.username or url.password or url.query or url.fragment)
        remedy = "give the key in an environment variable (judge.key_env)"
        require(not secret, f"judge.base_url: must hold no user, password or ?query; {remedy}")
        whole = not url.path.rstrip("/").endswith("/chat/completions")
        require(whole, f"judge.base_url={self.base_url}: leave out /chat/completions, which is added")

    @property
    def label(self) -> str:
        """What the judge is called in tables."""
        return self.name or self.model or Path(self.path or "").expanduser().resolve().name

    @property
    def sampling(self) -> dict[str, Any]:
        """What a reply depends on beside the model and the prompt."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}


def split_url(text: str) -> SplitResult:
    """The parts of an http(s) URL. Raises InputError, without the text, which may hold a secret."""
    remedy = "judge.base_url: must look like https://host/v1, without spaces"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise InputError(remedy) from None
    valid = url.scheme in ("http", "https") and bool(url.hostname) and text.isascii() and text.isprintable()
    require(valid and " " not in text and port != 0, remedy)
    return url


@dataclass(frozen=True)
class Usage:
    """Prompts asked, those among them answered from the cache, and tokens of the others."""

    prompts: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def plus(self, tokens_in: int, tokens_out: int) -> Usage:
        """With one more prompt that had to be asked."""
        total_in, total_out = self.tokens_in + tokens_in, self.tokens_out + tokens_out
        return replace(self, prompts=self.prompts + 1, tokens_in=total_in, tokens_out=total_out)

    def plus_cached(self, n: int = 1) -> Usage:
        """With n more prompts that the cache answered."""
        return replace(self, prompts=self.prompts + n, cached=self.cached + n)

    def price(self, cfg: JudgeConfig) -> float | None:
        """Dollars, if prices are known."""
        if cfg.price_in is None or cfg.price_out is None:
            return None
        return (self.tokens_in * cfg.price_in + self.tokens_out * cfg.price_out) / 1e6

    def told(self, cfg: JudgeConfig) -> str:
        """In words: prompts, tokens and, if prices are known, dollars."""
        price = self.price(cfg)
        dollars = "" if price is None else f", ${price:,.4f}"
        known = f" ({self.cached:,} answered before)" if self.cached else ""
        return f"{self.prompts:,} prompts{known}, {self.tokens_in:,} tokens in, {self.tokens_out:,} out{dollars}"


def open_backend(cfg: JudgeConfig, device: str = "auto") -> Backend:
    """The judge of `cfg`; `device` is where a local one runs. Raises InputError for no key and no model."""
    if cfg.path is None:
        from saebench.interpret.endpoint import Endpoint

        return Endpoint(cfg)
    from saebench.interpret.localjudge import LocalJudge

    return LocalJudge(cfg, device)
