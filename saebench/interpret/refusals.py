"""What an endpoint's error statuses mean: whose mistake, whether waiting helps, and what to do. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from saebench.checks import InputError
from saebench.interpret.judge import REFUSED, JudgeConfig, Reply

PASSING = (408, 409, 425, 429)  # and every 5xx but 501
LONGEST_MESSAGE = 200  # characters of the endpoint's own words in an error
NO_MONEY = ("insufficient_quota", "billing", "insufficient balance", "insufficient credit", "payment")
TOO_LONG = ("context_length", "context length", "maximum context", "too many tokens", "prompt is too long")
FILTERED = ("content_filter", "content_policy", "content management policy")


class Passing(Exception):  # noqa: N818 (trouble, not yet an error)
    """Trouble that may be over at the next attempt; `everyone` should wait, at least `wait` seconds where that is known."""

    def __init__(self, key: str, reason: str, remedy: str, wait: float | None = None, everyone: bool = False) -> None:
        super().__init__(reason)
        self.key, self.reason, self.remedy, self.wait, self.everyone = key, reason, remedy, wait, everyone


def read_error(body: bytes) -> tuple[str, str, str]:
    """Code, type and message of an error's body, whichever of the usual forms it has; empty where it says nothing."""
    text = body.decode(errors="replace")
    try:
        value: Any = json.loads(text)
    except ValueError:
        return "", "", "" if "<" in text else " ".join(text.split())  # a web page says nothing
    if isinstance(value, list):
        value = value[0] if value else {}
    if isinstance(value, dict):
        value = value.get("error") or value
    if not isinstance(value, dict):
        return "", "", str(value)
    code, kind, message, detail = (str(value.get(key) or "") for key in ("code", "type", "message", "detail"))
    return code, kind, " ".join((message or detail).split())


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Seconds asked for by Retry-After (seconds or a date) or retry-after-ms."""
    headers = headers or {}
    if (milliseconds := number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1e3
    text = headers.get("Retry-After", "")
    if (seconds := number(text)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:  # neither a number nor a date, or nothing
        return None


def number(text: str | None) -> float | None:
    """A number of at least 0, or None if `text` is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def refusal(cfg: JudgeConfig, status: int, headers: Mapping[str, str] | None, code: str, message: str) -> Reply:
    """A REFUSED reply if this one prompt was refused; otherwise raises Passing or InputError. `code` and type, in one string."""
    at, said = f"judge.base_url={cfg.base_url}", f"{code} {message}".lower()
    if status in (400, 413, 422) and any(words in said for words in TOO_LONG + FILTERED):
        return Reply("", 0, 0, REFUSED)
    if status == 402 or (status in (403, 429) and any(words in said for words in NO_MONEY)):
        kept = "the replies so far are kept, the same command goes on"
        raise InputError(f"{at}: the account has no quota left (status {status}); add credit; {kept}")
    if status in PASSING or (status >= 500 and status != 501):
        reason = (
            "the endpoint limits the rate (status 429)" if status == 429 else f"the endpoint fails (status {status})"
        )
        slower = "lower judge.concurrency or set judge.requests_per_minute" if status == 429 else "try later"
        raise Passing(at, reason, slower, retry_after(headers), everyone=status in (429, 503, 529))
    raise InputError(mistake(cfg, status, said, message[:LONGEST_MESSAGE].rstrip(".")))


def mistake(cfg: JudgeConfig, status: int, said: str, message: str) -> str:
    """The one line for a status that the user has to act on."""
    at = f"judge.base_url={cfg.base_url}"
    told = f"status {status}" + (f": {message}" if message else "")
    if status in (401, 403):
        told = told if status == 403 else "status 401"  # whose message often holds part of the key
        return f"judge.key_env={cfg.key_env}: access is refused ({told}); check the key in this variable and judge.base_url"
    if status == 404 and "model" in said:
        return f"judge.model={cfg.model}: the endpoint does not know this model ({told}); check its name"
    if status in (404, 405, 501):
        return f"{at}: there is no chat-completions service ({told}); check the URL, it often ends in /v1"
    if 300 <= status < 400:
        return f"{at}: it redirects (status {status}), which is not followed, for the key's sake; give the final URL"
    if "max_completion_tokens" in said:
        return f"judge.max_tokens_key={cfg.max_tokens_key}: refused ({told}); use judge.max_tokens_key=max_completion_tokens"
    if "temperature" in said:
        return f"judge.temperature={cfg.temperature}: refused ({told}); use judge.temperature=null, which sends none"
    return f"judge.model={cfg.model}: the endpoint refuses the request ({told}); change what it names"
