"""A judge behind an endpoint that speaks OpenAI's chat-completions protocol, with the standard library alone.

Requests run in threads, paced to the limits given; passing trouble (429, 5xx, time-outs) is waited out, the rest is one line.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import Any
from urllib.parse import quote

from saebench.checks import InputError, require
from saebench.interpret.judge import BYTES_PER_TOKEN, JudgeConfig, Prompt, Reply
from saebench.interpret.refusals import Passing, read_error, refusal
from saebench.progress import say

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between attempts: doubled from the first on, at most the longest
LONGEST_ASKED = 600.0  # seconds: who asks (Retry-After) to wait longer than this is not waited for


class Limit:
    """At most `per_minute` units a minute, evenly paced; None is no limit. Threads may share it."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 60 / per_minute if per_minute else 0.0  # of one unit
        self.clock, self.lock, self.free_at = clock, Lock(), 0.0

    def reserve(self, units: float) -> float:
        """Seconds to wait before using `units`, which from now on count as used."""
        with self.lock:
            now = self.clock()
            start = max(self.free_at, now)
            self.free_at = start + units * self.seconds
            return start - now

    def give_back(self, units: float) -> None:
        """Units reserved but not used (negative: used beyond what was reserved)."""
        with self.lock:
            self.free_at -= units * self.seconds

    def hold(self, seconds: float) -> None:
        """Let nobody start within the next `seconds`."""
        with self.lock:
            self.free_at = max(self.free_at, self.clock() + seconds)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are refused: the key would follow them to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """Follow nothing."""


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable. Raises InputError, which never shows it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    remedy = "name another variable (judge.key_env=NAME), or none (judge.key_env=null) if the endpoint asks for no key"
    require(bool(key), f"judge.key_env={variable}: this environment variable is not set; set it to the key, {remedy}")
    clean = key.isascii() and key.isprintable() and " " not in key
    require(
        clean, f"judge.key_env={variable}: the key in this variable has spaces or unprintable characters; set it anew"
    )
    return key


class Endpoint:
    """The model `cfg.model` at `cfg.base_url`. Raises InputError for a missing key."""

    def __init__(self, cfg: JudgeConfig) -> None:
        self.cfg, self.url = cfg, cfg.base_url.rstrip("/") + "/chat/completions"
        self._key = read_key(cfg.key_env)
        served = {"name": cfg.name} if cfg.name else {"base_url": cfg.base_url.rstrip("/")}
        self.identity: dict[str, Any] = {**served, "model": cfg.model, "sampling": cfg.sampling}
        self.requests, self.tokens = Limit(cfg.requests_per_minute), Limit(cfg.tokens_per_minute)
        self.opener = urllib.request.build_opener(NoRedirect)
        self.jitter = random.Random()  # of waiting times, which no result depends on
        self.stopped, self.reached, self.told = Event(), False, set[str]()

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """Replies as they come; after a failure no new request starts, those under way are yielded, then it is raised."""
        self.stopped.clear()
        failure: InputError | None = None
        pool = ThreadPoolExecutor(self.cfg.concurrency, thread_name_prefix="judge")
        try:
            asked: dict[Future[Reply], int] = {pool.submit(self.reply, prompt): i for i, prompt in enumerate(prompts)}
            for done in as_completed(asked):
                try:
                    reply = done.result()
                except CancelledError:
                    continue
                except InputError as error:
                    failure = failure or error
                    self.stop(asked)
                    continue
                yield asked[done], reply
        finally:
            self.stopped.set()
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure

    def stop(self, asked: dict[Future[Reply], int]) -> None:
        """Start no request any more and wake those who wait."""
        self.stopped.set()
        for future in asked:
            future.cancel()

    def reply(self, prompt: Prompt) -> Reply:
        """The reply to one prompt, passing trouble waited out. Raises InputError."""
        expected = prompt.tokens + self.cfg.max_tokens
        for attempt in range(self.cfg.retries + 1):
            self.wait(max(self.requests.reserve(1), self.tokens.reserve(expected)))
            try:
                reply = self.attempt(prompt)
            except Passing as trouble:
                self.tokens.give_back(expected)
                self.back_off(attempt, trouble)
                continue
            self.tokens.give_back(expected - reply.tokens_in - reply.tokens_out)
            return reply
        raise AssertionError("the last attempt returns or raises")

    def back_off(self, attempt: int, trouble: Passing) -> None:
        """Wait before the next attempt. Raises InputError if there is none, or if the wait asked for is too long."""
        kept = "the replies so far are kept, the same command goes on"
        if attempt == self.cfg.retries:
            tried = f"tried {attempt + 1} times (judge.retries={self.cfg.retries})"
            raise InputError(f"{trouble.key}: {trouble.reason}; {tried}; {trouble.remedy}; {kept}") from None
        asked = trouble.wait or 0.0
        if asked > LONGEST_ASKED:
            raise InputError(
                f"{trouble.key}: {trouble.reason} and asks to wait {asked:.0f} s; try later; {kept}"
            ) from None
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
        seconds = asked + longest * self.jitter.uniform(0.5, 1)
        if trouble.everyone:
            self.requests.hold(seconds)
        if trouble.reason not in self.told:
            self.told.add(trouble.reason)
            say(f"judge: {trouble.reason}; waiting, {self.cfg.retries - attempt} attempts are left")
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Sleep, unless another request has failed for good."""
        if self.stopped.wait(max(0.0, seconds)):
            raise InputError("judge: stopped, because another request failed")

    def attempt(self, prompt: Prompt) -> Reply:
        """One request. Raises Passing for what may be better next time, InputError for what will not."""
        try:
            with self.opener.open(self.request(prompt), timeout=self.cfg.timeout_s) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return self.refused(error.code, error.headers, read_body(error))
        except urllib.error.URLError as error:
            raise self.lost(error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise self.lost(error) from None
        return self.parsed(prompt, body)

    def request(self, prompt: Prompt) -> urllib.request.Request:
        """The request for one prompt."""
        cfg = self.cfg
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        body: dict[str, Any] = {"model": cfg.model, "messages": messages, cfg.max_tokens_key: cfg.max_tokens}
        if cfg.temperature is not None:
            body["temperature"] = cfg.temperature
        headers = {"Content-Type": "application/json", "User-Agent": "saebench"}  # some hosts bar urllib's own
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")

    def parsed(self, prompt: Prompt, body: bytes) -> Reply:
        """The reply in the body of a 200. Raises InputError if it is no chat completion."""
        try:
            value = json.loads(body)
            choice = value["choices"][0]
            text = self.hide(choice["message"].get("content") or "")
            usage = value.get("usage") or {}
            finish = str(choice.get("finish_reason") or "stop")
        except (ValueError, LookupError, TypeError, AttributeError):
            return self.not_a_completion(body)
        self.reached = True
        tokens_in = usage.get("prompt_tokens") or prompt.tokens
        tokens_out = usage.get("completion_tokens") or len(text.encode()) // BYTES_PER_TOKEN
        return Reply(text, int(tokens_in), int(tokens_out), finish)

    def not_a_completion(self, body: bytes) -> Reply:
        """What a 200 without choices means: an error told in the body, or another service."""
        code, _kind, _message = read_error(body)
        if code.isdecimal() and int(code) >= 400:
            return self.refused(int(code), None, body)
        what = "answers, but not with a chat completion"
        if self.reached:
            raise Passing(f"judge.base_url={self.cfg.base_url}", what, "look at the endpoint's log")
        raise InputError(
            f"judge.base_url={self.cfg.base_url}: {what}; give an OpenAI-compatible URL, often ending in /v1"
        )

    def refused(self, status: int, headers: Any, body: bytes) -> Reply:
        """What an error status means: a prompt that is refused, Passing, or InputError."""
        code, kind, message = read_error(body)
        return refusal(self.cfg, status, headers, code + " " + kind, self.hide(message))

    def lost(self, reason: Any) -> Exception:
        """What a connection that failed means: the user's mistake before anything was reached, else passing trouble."""
        at = f"judge.base_url={self.cfg.base_url}"
        if isinstance(reason, TimeoutError):
            late = f"no reply within {self.cfg.timeout_s:g} s"
            return Passing(f"judge.timeout_s={self.cfg.timeout_s:g}", late, "raise it or lower judge.concurrency")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return InputError(f"{at}: its certificate cannot be verified ({reason.verify_message}); mend it or the URL")
        what = self.hide(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)
        if not self.reached and isinstance(reason, ConnectionRefusedError | socket.gaierror):
            return InputError(f"{at}: cannot be reached ({what}); check the URL, and that the server runs")
        return Passing(at, f"the connection failed ({what})", "check that the server runs")

    def hide(self, text: str) -> str:
        """The text without the key, should the server have sent it back."""
        for form in {self._key, quote(self._key, safe="")} if self._key else ():
            text = text.replace(form, "[key]")
        return text


def read_body(error: urllib.error.HTTPError) -> bytes:
    """The body of an error, or nothing if it cannot be read."""
    try:
        return error.read()
    except (OSError, http.client.HTTPException):
        return b""
