"""A judge in a folder: its replies are the model's greedy ones, and a model that cannot judge is counted as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saebench.assets import TINY_GPT2
from saebench.checks import InputError
from saebench.interpret.judge import REFUSED, JudgeConfig, Message, Prompt, Reply, open_backend
from saebench.interpret.localjudge import LocalJudge
from tests.test_interpret_judged import ALL, judged, latent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded tokenizer beside a random model with room for long prompts."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("judge")
    shape = AutoConfig.from_pretrained(TINY_GPT2, n_layer=1, n_embd=16, n_head=2, n_positions=2048)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    AutoTokenizer.from_pretrained(TINY_GPT2).save_pretrained(path)
    return path


def local(path: Path | str, **changes: Any) -> LocalJudge:
    return LocalJudge(JudgeConfig(**{"path": str(path), "max_tokens": 8, "batch": 2} | changes), "cpu")


def prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def greedy(judge: LocalJudge, text: str, n: int) -> str:
    """The n tokens after a text, one forward pass each."""
    ids = torch.tensor([judge.tokenizer(text)["input_ids"]])  # [1, t]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(n):
            best = judge.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)  # [1, 1]
            ids = torch.cat([ids, best], 1)
    return judge.tokenizer.decode(ids[0, start:])


def test_replies_are_greedy_whatever_the_batch() -> None:
    judge = local("embedded")
    texts = ["def f(x):", "import os, sys", "The list of all the things that one can do", "A"]
    replies = dict(judge.replies([prompt(text) for text in texts]))
    for i, text in enumerate(texts):
        whole = f"Question: {text}\n\nAnswer:"
        n = len(judge.tokenizer(whole)["input_ids"])
        assert replies[i] == Reply(greedy(judge, whole, 8), n, 8, "length")


def test_a_reply_ends_where_the_model_ends_it(folder: Path) -> None:
    judge = local(folder)
    assert judge.ends == {0}
    ids = judge.tokenizer("yes")["input_ids"]
    assert judge.reply(3, [*ids, 0, *ids]) == Reply("yes", 3, len(ids) + 1, "stop")


def test_a_chat_template_is_used(folder: Path) -> None:
    judge = local(folder)
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    judge.tokenizer.chat_template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    asked = Prompt((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    assert judge.tokenizer.decode(judge.encode(asked)) == "[user]a[assistant]b[user]c[assistant]"


def test_a_model_that_cannot_judge_is_counted_as_such(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = JudgeConfig(path=str(folder), max_tokens=4, broken_limit=0)
    verdicts = judged(cfg, [latent(1), latent(2)], ALL, 0, tmp_path)
    assert [v.explanation for v in verdicts] == ["", ""]
    assert all(s.value == 0 and s.broken == s.n > 0 for v in verdicts for s in v.scores)
    told = capsys.readouterr().err
    assert "2 of 2 replies about explanation were broken, asked twice, 2 of them cut short by judge.max_tokens" in told
    assert judged(cfg, [latent(1), latent(2)], ALL, 0, tmp_path) == verdicts
    assert "0 tokens in, 0 out" in capsys.readouterr().err
    strict, many = JudgeConfig(path=str(folder), max_tokens=1), [latent(n) for n in range(25)]
    with pytest.raises(InputError, match="20 of 20 replies about explanation were broken"):
        judged(strict, many, ALL, 0, tmp_path)


def test_prompts_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    replies = dict(local("embedded").replies([prompt("word " * 300), prompt("word")]))
    assert replies[0] == Reply("", 0, 0, REFUSED)
    assert replies[1].tokens_out == 8
    assert "1 prompts of up to" in capsys.readouterr().err


def test_other_weights_are_another_judge(folder: Path) -> None:
    assert local(folder).identity == local(folder).identity
    assert local(folder).identity != local("embedded").identity
    assert local(folder).identity != local(folder, max_tokens=9).identity
    assert local(folder, name="judge").identity == local("embedded", name="judge").identity


def test_folders_without_a_model_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"judge.path=.*nowhere: there is no such folder"):
        open_backend(JudgeConfig(path=str(tmp_path / "nowhere")), "cpu")
    with pytest.raises(InputError, match=r"judge.path=.*no config.json there"):
        open_backend(JudgeConfig(path=str(tmp_path)), "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(InputError, match=r"judge.path=.*transformers does not know this model"):
        open_backend(JudgeConfig(path=str(tmp_path)), "cpu")
