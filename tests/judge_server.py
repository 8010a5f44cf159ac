"""An endpoint on this machine that speaks OpenAI's chat-completions protocol, as well or as badly as a test wants it to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from saebench.interpret import endpoint
from saebench.interpret.judge import JudgeConfig

KEY = "sk-Se/cret+0123456789"
MODEL, WORD = "tiny-judge", " magic"  # the judges below know of one latent: active on this token


class Answer(NamedTuple):
    """What the server sends."""

    status: int
    body: bytes
    headers: dict[str, str]


class Asked(NamedTuple):
    """What the server was sent."""

    at: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The last message."""
        return self.body["messages"][-1]["content"]


def error(status: int, message: str = "", code: str = "", **headers: str) -> Answer:
    """An error as OpenAI words it; in names of headers _ stands for -."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def completion(text: str | None, finish: str = "stop", tokens: tuple[int, int] | None = (100, 7)) -> Answer:
    """A reply; `tokens` in and out, or no usage at all."""
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Answer(200, json.dumps(body).encode(), {})


class Server(ThreadingHTTPServer):
    """Sends the answers in `first`, in turn, then what `judge` says to a prompt (a text, or an Answer)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.judge: Callable[[str], str | Answer] = perfect
        self.first: list[Answer] = []
        self.asked: list[Asked] = []
        self.delay, self.busy, self.busiest = 0.0, 0, 0
        self.key: str | None = None  # if set, the only one that is let in
        self.guard = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""

    def answer(self, asked: Asked) -> Answer:
        """What to send back."""
        with self.guard:
            self.asked.append(asked)
            scripted = self.first.pop(0) if self.first else None
        if scripted is not None:
            return scripted
        if asked.path != "/v1/chat/completions":
            return Answer(404, b"<html>404 page not found</html>", {})
        if self.key is not None and asked.headers.get("Authorization") != f"Bearer {self.key}":
            return error(401, f"Incorrect API key provided: {asked.headers.get('Authorization')}", "invalid_api_key")
        if asked.body["model"] != MODEL:
            return error(404, f"The model `{asked.body['model']}` does not exist", "model_not_found")
        said = self.judge(asked.prompt)
        return said if isinstance(said, Answer) else completion(said)


class Handler(BaseHTTPRequestHandler):
    """Reads one request, waits, answers."""

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.guard:
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        time.sleep(server.delay)
        answer = server.answer(Asked(time.monotonic(), self.path, dict(self.headers), body))
        with server.guard:
            server.busy -= 1
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quietly."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server, stopped at the end."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that lets only KEY in, which is in the environment; waits between attempts are short."""
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    with serving() as made:
        made.key = KEY
        yield made


def config(server: Server, **changes: Any) -> JudgeConfig:
    """The server's config."""
    given: dict[str, Any] = {
        "model": MODEL,
        "base_url": server.url,
        "key_env": "TEST_KEY",
        "timeout_s": 5,
        "retries": 2,
    }
    return JudgeConfig(**given | changes)


def perfect(prompt: str) -> str:
    """The judge that knows the word: explains by it, and answers right wherever the explanation names it."""
    if "EXPLANATION:" in prompt:
        return f"I see it often.\nEXPLANATION: the token {WORD.strip()}"
    if '"the token magic"' not in prompt:
        return "[0, 0, 0, 0, 0]"
    if "one numbered token a line" in prompt:
        tokens = re.findall(r'^(\d+) (".*")$', prompt, re.MULTILINE)
        return json.dumps({place: 10 for place, token in tokens if json.loads(token) == WORD})
    texts = [json.loads(text) for text in re.findall(r'^Text \d+: (".*")$', prompt, re.MULTILINE)]
    sought = f"<<{WORD}>>" if "between << and >>" in prompt else WORD
    return json.dumps([int(sought in text) for text in texts])


def always_yes(prompt: str) -> str:
    """The judge that says yes to everything."""
    if "EXPLANATION:" in prompt:
        return "EXPLANATION: anything"
    if "one numbered token a line" in prompt:
        return json.dumps(dict.fromkeys(re.findall(r'^(\d+) "', prompt, re.MULTILINE), 5))
    return json.dumps([1] * len(re.findall(r"^Text \d+: ", prompt, re.MULTILINE)))


def prose(_prompt: str) -> str:
    """The judge that only chats."""
    return "What a lovely question! I would say the first and the third."
