"""Replies kept on disk, so that a question is paid for once and work goes on after any interruption. No torch.

One JSON line a reply, appended as it comes: a killed process loses at most the line it was writing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, Self

from saebench.checks import InputError
from saebench.interpret.judge import REFUSED, Backend, JudgeConfig, Prompt, Reply, Usage, open_backend
from saebench.progress import Progress, say
from saebench.store import key_of


class Replies:
    """Replies by key, in memory and in the file `path`; threads may share it, and processes may append to the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.known, self.lock = path, dict[str, Reply](), Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        lines = path.read_bytes().split(b"\n")
        if lines[-1]:
            self.append(b"")  # what a killed process left without an end gets its own line
        damaged = sum(not self.load(line) for line in lines if line)
        if damaged:
            say(f"{path}: {damaged} damaged lines are passed over, their questions are asked again")

    def load(self, line: bytes) -> bool:
        """Whether the line is a reply, which is then known."""
        try:
            fields = json.loads(line)
            key = fields.pop("key")
            self.known[key] = Reply(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        return True

    def append(self, line: bytes) -> None:
        """Write one line and hand it to the system."""
        self.file.write(line + b"\n")
        self.file.flush()

    def get(self, key: str) -> Reply | None:
        """The reply stored under `key`."""
        return self.known.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply."""
        line = json.dumps({"key": key, **asdict(reply)}).encode()
        with self.lock:
            self.known[key] = reply
            self.append(line)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class CachedJudge:
    """A judge that asks `backend` only what it has not answered before.

    Replies lie in `folder`/<key of the backend's identity>.jsonl, each under the SHA-256 of identity, sampling and messages.
    `usage` counts what was asked; `progress`, where one is set, advances by every prompt that does not repeat a question.
    """

    def __init__(self, backend: Backend, cfg: JudgeConfig, folder: Path) -> None:
        self.backend, self.cfg = backend, cfg
        self.replies = Replies(folder / f"{key_of(backend.identity)}.jsonl")
        self.usage = Usage()
        self.progress: Progress | None = None

    def key(self, prompt: Prompt) -> str:
        """SHA-256 of judge, sampling and messages, in hex."""
        parts: dict[str, Any] = {"judge": self.backend.identity, "messages": prompt.messages}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def known(self, prompt: Prompt) -> Reply | None:
        """The reply to a prompt if it was asked before."""
        return self.replies.get(self.key(prompt))

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply for each prompt, equal prompts asked once. Raises InputError; what was answered before it is kept."""
        keys = [self.key(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self.replies.get(key) is None}
        self.usage = self.usage.plus_cached(len(prompts) - len(missing))
        self.advance(sum(not prompt.again for prompt in prompts) - sum(not prompt.again for prompt in missing.values()))
        fresh = self.ask_backend(missing)
        return [fresh[key] if key in fresh else self.replies.known[key] for key in keys]

    def ask_backend(self, missing: dict[str, Prompt]) -> dict[str, Reply]:
        """Replies to prompts by key, kept as they come; a refusal is not kept, as another server may answer."""
        fresh, keys = dict[str, Reply](), list(missing)
        for place, reply in self.backend.replies(list(missing.values())):
            fresh[keys[place]] = reply
            if reply.finish != REFUSED:
                self.replies.put(keys[place], reply)
            self.usage = self.usage.plus(reply.tokens_in, reply.tokens_out)
            self.advance(not missing[keys[place]].again)
        return fresh

    def advance(self, n: int) -> None:
        """Show progress and what was spent."""
        if self.progress is not None and n:
            self.progress.advance(n, self.usage.told(self.cfg))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.replies.close()


def open_judge(cfg: JudgeConfig, folder: Path, device: str = "auto") -> CachedJudge:
    """The judge of `cfg`, to be used in a `with`; replies are kept in `folder`, a local model runs on `device`.

    Raises InputError for no key, no model, and a folder that cannot be written.
    """
    return CachedJudge(open_backend(cfg, device), cfg, folder)
