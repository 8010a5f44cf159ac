"""Judges themselves: an endpoint in good and bad health, what is kept on disk, what must not be, and local models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saebench.checks import InputError
from saebench.interpret.endpoint import Endpoint, Limit
from saebench.interpret.judge import REFUSED, JudgeConfig, Message, Prompt, Reply, Usage, open_backend
from saebench.interpret.judged import estimate
from saebench.interpret.replies import Replies, open_judge
from tests.judge_server import KEY, MODEL, Answer, Server, completion, config, error, server
from tests.test_interpret_judged import ALL, judged, latent

__all__ = ["server"]  # a fixture
SECRETS = (KEY, KEY.split("-")[1], json.dumps(KEY)[1:-1], "sk-Se%2Fcret%2B0123456789")


def prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def ask_one(cfg: JudgeConfig, text: str = "Which?") -> Reply:
    return next(iter(Endpoint(cfg).replies([prompt(text)])))[1]


def ask_all(judge: Any, n: int) -> list[str]:
    return [reply.text for reply in judge.ask([prompt(f"question {i}") for i in range(n)])]


# An endpoint


def test_a_request_is_what_the_protocol_asks_for(server: Server) -> None:
    reply = ask_one(config(server, temperature=0.5, max_tokens=9))
    assert reply == Reply("[0, 0, 0, 0, 0]", 100, 7, "stop")
    [asked] = server.asked
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    messages = [{"role": "user", "content": "Which?"}]
    assert asked.body == {"model": MODEL, "messages": messages, "max_tokens": 9, "temperature": 0.5}


def test_sampling_keys_are_sent_as_configured(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = None
    monkeypatch.delenv("TEST_KEY")
    ask_one(config(server, key_env=None, temperature=None, max_tokens_key="max_completion_tokens"))
    assert "Authorization" not in server.asked[0].headers
    assert sorted(server.asked[0].body) == ["max_completion_tokens", "messages", "model"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_passing_trouble_is_waited_out(server: Server, status: int) -> None:
    server.first = [error(status), error(status)]
    assert ask_one(config(server)).text == "[0, 0, 0, 0, 0]"
    assert len(server.asked) == 3


def test_retry_after_is_honoured_by_every_request(server: Server) -> None:
    server.first = [error(429, "slow down", "rate_limit_exceeded", Retry_After="0.5")]
    server.judge = lambda _text: time.sleep(0.1) or "ok"
    judge = Endpoint(config(server, concurrency=2))
    assert len(list(judge.replies([prompt(f"a{i}") for i in range(6)]))) == 6
    times = [asked.at - server.asked[0].at for asked in server.asked]
    assert sum(at < 0.45 for at in times) <= 2  # the refused one, and one that was under way
    assert len(times) == 7


def test_a_failure_stops_the_other_requests(server: Server) -> None:
    server.delay, server.judge = 0.02, lambda _text: error(402)
    with pytest.raises(InputError, match="no quota left"):
        list(Endpoint(config(server, concurrency=2)).replies([prompt(f"a{i}") for i in range(40)]))
    assert len(server.asked) < 10


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(500, "boom"), r"the endpoint fails \(status 500\); tried 3 times .* replies so far are kept"),
        (error(429, "slow"), r"limits the rate \(status 429\); tried 3 times .* judge.requests_per_minute"),
    ],
)
def test_lasting_trouble_is_one_line(server: Server, answer: Answer, message: str) -> None:
    server.first = [answer] * 3
    with pytest.raises(InputError, match=message):
        ask_one(config(server))
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            error(429, "You exceeded your quota", "insufficient_quota"),
            "judge.base_url=.*: the account has no quota left",
        ),
        (error(402, "Insufficient credits"), "no quota left"),
        (error(429, "later", "rate", Retry_After="86400"), "asks to wait 86400 s; try later"),
        (error(401, f"Incorrect key {KEY}"), r"judge.key_env=TEST_KEY: access is refused \(status 401\)"),
        (error(404, "The model `x` does not exist"), "judge.model=tiny-judge: the endpoint does not know this model"),
        (Answer(404, b"<html>not found</html>", {}), "there is no chat-completions service"),
        (Answer(405, b"", {}), "there is no chat-completions service"),
        (error(400, "use 'max_completion_tokens' instead"), "use judge.max_tokens_key=max_completion_tokens"),
        (error(400, "'temperature' does not support 0"), "use judge.temperature=null"),
        (error(400, "bad request"), r"refuses the request \(status 400: bad request\)"),
        (Answer(200, b"<html>Welcome</html>", {}), "not with a chat completion; give an OpenAI-compatible URL"),
        (Answer(200, b'{"choices": []}', {}), "not with a chat completion"),
        (Answer(200, b'{"error": {"code": 402, "message": "no"}}', {}), "no quota left"),
    ],
)
def test_mistakes_are_one_line_at_once(server: Server, answer: Answer, message: str) -> None:
    server.first = [answer]
    with pytest.raises(InputError, match=message) as failure:
        ask_one(config(server))
    assert len(server.asked) == 1
    assert "\n" not in str(failure.value)
    assert not any(secret in str(failure.value) for secret in SECRETS)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (error(400, "This model's maximum context length is 10"), Reply("", 0, 0, REFUSED)),
        (error(400, "filtered", "content_filter"), Reply("", 0, 0, REFUSED)),
        (completion(None, "content_filter"), Reply("", 100, 7, "content_filter")),
        (completion("ab cd ef", "length", None), Reply("ab cd ef", 5, 2, "length")),
    ],
)
def test_unusual_replies(server: Server, answer: Answer, reply: Reply) -> None:
    server.first = [answer]
    assert ask_one(config(server)) == reply


def test_a_slow_endpoint_is_one_line(server: Server) -> None:
    server.delay = 0.5
    with pytest.raises(InputError, match=r"judge.timeout_s=0.1: no reply within 0.1 s; tried 2 times"):
        ask_one(config(server, timeout_s=0.1, retries=1))


def test_wrong_urls_are_one_line(server: Server) -> None:
    with pytest.raises(InputError, match=r"judge.base_url=.*9: cannot be reached"):
        ask_one(config(server, base_url="http://127.0.0.1:9"))
    with pytest.raises(InputError, match="there is no chat-completions service"):
        ask_one(config(server, base_url=server.url + "/api"))
    with pytest.raises(InputError, match=r"judge.model=other: the endpoint does not know this model"):
        ask_one(config(server, model="other"))


def test_a_server_that_goes_away_is_waited_for(server: Server) -> None:
    judge = Endpoint(config(server))
    next(iter(judge.replies([prompt("a")])))
    server.server_close()
    server.shutdown()
    with pytest.raises(InputError, match=r"the connection failed .* tried 3 times"):
        next(iter(judge.replies([prompt("b")])))


def test_redirects_are_not_followed(server: Server) -> None:
    server.first = [Answer(307, b"", {"Location": f"{server.url}/chat/completions"})]
    with pytest.raises(InputError, match="it redirects"):
        ask_one(config(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_one_line(server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("TEST_KEY") if value is None else monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(InputError, match=r"judge.key_env=TEST_KEY: this environment variable is not set"):
        open_backend(config(server))


def test_a_malformed_key_is_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-abc\nsk-def")
    with pytest.raises(InputError, match="spaces or unprintable") as failure:
        open_backend(config(server))
    assert "sk-" not in str(failure.value)


def test_requests_run_at_once_up_to_the_limit(server: Server) -> None:
    server.delay, server.judge = 0.05, lambda text: text.upper()
    judge = Endpoint(config(server, concurrency=4))
    replies = dict(judge.replies([prompt(f"a{i}") for i in range(16)]))
    assert [replies[i].text for i in range(16)] == [f"A{i}" for i in range(16)]
    assert 2 <= server.busiest <= 4


def test_limits_pace_evenly() -> None:
    now = [100.0]
    limit = Limit(30, clock=lambda: now[0])
    assert [limit.reserve(1) for _ in range(3)] == [0, 2, 4]
    limit.give_back(1)
    assert limit.reserve(0.5) == 4
    now[0] = 200.0
    assert limit.reserve(10) == 0
    limit.hold(30)
    assert limit.reserve(1) == 30
    free = Limit(None, clock=lambda: now[0])
    assert [free.reserve(1000), free.reserve(1000)] == [0, 0]


def test_rates_are_kept_to(server: Server) -> None:
    began = time.monotonic()
    list(Endpoint(config(server, requests_per_minute=600)).replies([prompt(f"a{i}") for i in range(5)]))
    assert server.asked[-1].at - began >= 0.4
    server.asked.clear()
    tokens = 60 * 107 / 0.1  # what the server says a request took, ten times a second; each reserves 5 + 10
    paced = Endpoint(config(server, tokens_per_minute=tokens, max_tokens=10, concurrency=1))
    list(paced.replies([prompt(f"a{i}") for i in range(5)]))
    assert server.asked[-1].at - server.asked[0].at >= 0.3


# What is kept


def test_a_rerun_costs_nothing(server: Server, tmp_path: Path) -> None:
    latents = [latent(n) for n in range(3)]
    first = judged(config(server), latents, ALL, 0, tmp_path)
    assert len(server.asked) > 10
    server.asked.clear()
    assert judged(config(server), latents, ALL, 0, tmp_path) == first
    assert server.asked == []
    judged(config(server, max_tokens=400), latents[:1], (), 0, tmp_path)
    assert len(server.asked) == 1


def test_a_named_judge_may_move(server: Server, tmp_path: Path) -> None:
    moved = config(server, name="judge", base_url=server.url.replace("127.0.0.1", "localhost"))
    for cfg in (config(server, name="judge"), moved):
        with open_judge(cfg, tmp_path) as judge:
            assert len(ask_all(judge, 3)) == 3
    assert len(server.asked) == 3


def test_equal_prompts_are_asked_once(server: Server, tmp_path: Path) -> None:
    with open_judge(config(server), tmp_path) as judge:
        assert len(judge.ask([prompt("a"), prompt("b"), prompt("a")])) == 3
    assert len(server.asked) == 2
    assert judge.usage == Usage(prompts=3, cached=1, tokens_in=200, tokens_out=14)


def test_replies_before_a_failure_are_kept(server: Server, tmp_path: Path) -> None:
    server.judge = lambda text: error(429, "", "insufficient_quota") if "7" in text else "ok"
    with open_judge(config(server, concurrency=2), tmp_path) as judge, pytest.raises(InputError, match="no quota left"):
        ask_all(judge, 10)
    answered = sum("7" not in asked.prompt for asked in server.asked)
    assert 6 <= answered < 10
    server.asked.clear()
    server.judge = lambda _text: "ok"
    with open_judge(config(server), tmp_path) as judge:
        assert ask_all(judge, 10) == ["ok"] * 10
    assert len(server.asked) == 10 - answered


def test_a_damaged_file_loses_only_its_damaged_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "replies.jsonl"
    replies = Replies(path)
    replies.put("a", Reply("one", 1, 1))
    replies.put("b", Reply("two\nlines", 1, 1))
    replies.close()
    path.write_bytes(path.read_bytes()[:-5])
    again = Replies(path)
    again.put("c", Reply("three", 1, 1))
    again.close()
    last = Replies(path)
    last.close()
    assert last.known == {"a": Reply("one", 1, 1), "c": Reply("three", 1, 1)}
    assert "1 damaged lines" in capsys.readouterr().err


ASK = """
import sys
from pathlib import Path
from saebench.interpret.judge import JudgeConfig, Message, Prompt
from saebench.interpret.replies import open_judge
cfg = JudgeConfig(model="tiny-judge", base_url=sys.argv[1], key_env="TEST_KEY", concurrency=2)
prompts = [Prompt((Message("user", f"question {i}"),)) for i in range(60)]
open_judge(cfg, Path(sys.argv[2])).ask(prompts)
"""


def test_a_killed_process_loses_only_what_was_under_way(server: Server, tmp_path: Path) -> None:
    server.delay = 0.02
    process = subprocess.Popen([sys.executable, "-c", ASK, server.url, str(tmp_path)], env=dict(os.environ))
    deadline = time.monotonic() + 60
    while len(server.asked) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)  # until the server has noted the requests under way
    before = len(server.asked)
    assert 10 <= before < 60
    with open_judge(config(server), tmp_path) as judge:
        ask_all(judge, 60)
    assert 60 <= len(server.asked) <= 60 + 4


def test_the_estimate_counts_what_will_be_asked(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(server, price_in=2.0, price_out=10.0)
    latents = [latent(n) for n in range(3)]
    with open_judge(cfg, tmp_path) as judge:
        before = estimate(judge, latents, ALL, 0)
    judged(cfg, latents, ALL, 0, tmp_path)
    told = capsys.readouterr().err
    assert before.prompts == 3 * (1 + 3 + 4 + 13) >= len(server.asked)
    assert f"3 latents will take about {before.told(cfg)}" in told
    assert f"took {before.prompts} prompts" in told
    with open_judge(cfg, tmp_path) as judge:
        assert estimate(judge, latents, ALL, 0) == Usage(prompts=before.prompts, cached=before.prompts)
    assert (
        Usage(3, 1, 10**6, 10**5).told(cfg)
        == "3 prompts (1 answered before), 1,000,000 tokens in, 100,000 out, $3.0000"
    )
    assert Usage(1, 0, 5, 6).told(config(server)) == "1 prompts, 5 tokens in, 6 out"


# What must not be kept


def test_the_key_is_nowhere(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cfg = config(server, broken_limit=0)
    server.judge = lambda text: f"EXPLANATION: it says Authorization: Bearer {KEY} and {SECRETS[-1]}"
    verdicts = judged(cfg, [latent()], ALL, 0, tmp_path)
    seen = [repr(verdicts), repr(cfg), str(vars(cfg)), repr(Endpoint(cfg))]
    echo = f"Bearer {KEY}"
    for status in (400, 401, 403, 404, 418, 429, 500, 302):
        server.first = [error(status, f"you sent {echo}", echo)] * 6
        with pytest.raises(InputError) as failure:
            judged(cfg, [latent(), latent(shown=latent().shown[:2])], (), 0, tmp_path)
        seen += [str(failure.value), repr(failure.value.__cause__), repr(failure.value.__context__)]
    seen += [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    seen += [*capfd.readouterr()]
    assert all(secret not in text for text in seen for secret in SECRETS)
    assert any("[key]" in text for text in seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "judge.model: give the endpoint's model"),
        ({"base_url": "api.openai.com/v1"}, "judge.base_url: must look like https://host/v1"),
        ({"base_url": "http://[::1"}, "judge.base_url: must look like"),
        ({"base_url": "http://h:x/v1"}, "judge.base_url: must look like"),
        ({"base_url": "https://me:secret@host/v1"}, "must hold no user, password"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "must hold no user, password"),
        ({"base_url": "https://host/v1/chat/completions"}, "leave out /chat/completions"),
        ({"path": "folder"}, "judge.path is given too"),
        ({"path": "folder", "model": None, "temperature": 1.0}, "a local judge is greedy"),
        ({"temperature": -1.0}, "judge.temperature=-1.0: must be at least 0"),
        ({"concurrency": 0}, "judge.concurrency=0: must be at least 1"),
        ({"timeout_s": 0}, "judge.timeout_s=0: must be positive"),
        ({"requests_per_minute": 0}, "judge.requests_per_minute=0: must be positive"),
        ({"price_in": 1.0}, "give both or neither"),
        ({"max_tokens_key": "max_token"}, "did you mean max_tokens"),
    ],
)
def test_wrong_configs_are_one_line(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": MODEL} | changes
    with pytest.raises(InputError) as failure:
        JudgeConfig(**given)
    assert message in str(failure.value)
    assert KEY not in str(failure.value)


def test_an_unknown_score_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="score=detektion: did you mean detection"):
        judged(config(server), [latent()], ("detektion",), 0, tmp_path)


def test_asking_an_endpoint_needs_no_torch() -> None:
    code = "import sys, saebench.interpret.judged, saebench.interpret.endpoint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
