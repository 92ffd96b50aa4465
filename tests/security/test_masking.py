"""Secrets leave nothing behind: what is masked, what is not, and that each place which keeps text asks first (J14)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from components import chain, masking
from components.errors import UserError
from components.layout import ROOT, Layout
from components.masking import MASK, masked
from components.release import lineage

pytestmark = pytest.mark.code

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLE7"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("LMWORKS_ALERT_WEBHOOK", "https://hooks.example.org/services/T0123456789abc")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:open-sesame-7")


@pytest.mark.parametrize("text", [
    f"403 for key {SECRET}!", "GET /services/T0123456789abc failed", "hunter: open-sesame-7", "AKIAIOSFODNN7EXAMPLE", "password: topsecret", "+PASSWORD=hunter2hunter2",
    '"client_secret": "abcdefgh"', "git clone https://me:p4ssw0rd@example.org/x.git", "Authorization: Bearer abcdef0123456789", "hf_abcdefghijklmnopqrstuvwxyz0123",
    'api_key = "abcd1234abcd1234"', "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    "数据库密码: topsecret-9", "这是我的密码：topsecret9，别外传", '口令＝"topsecret9"', "API密钥: abcd1234abcd1234efgh", "password：topsecret9", "DB_PASS=topsecret", "mysql_pwd: topsecret"])
def test_J14_what_is_a_secret_is_masked(planted: None, text: str):
    clean = masked(text)
    assert MASK in clean and masked(clean) == clean
    for secret in (SECRET, "T0123456789abc", "open-sesame-7", "AKIAIOSFODNN7", "topsecret", "hunter2", "abcdefgh", "p4ssw0rd", "0123456789", "abcd1234", "MIIE", "eyJ"):
        assert secret not in clean


@pytest.mark.parametrize("text", [
    "pretrain 12/120 loss 3.21 · 9,120 tok/s · 01:20 left", "tokenizer: learning 2,048 entries from 1.9 MB", "http://127.0.0.1:5311/#/models/tiny/versions/3",
    "data/tokenizer/tokenizer.json is damaged: sha256 388e4975c245a858… found", "max_new_tokens: 1000", 'eos_token: "<|endoftext|>"', "Basic understanding of tokens",
    "房间很干净，密码: 无", "密码：请输入至少八位的密码", "password：请输入至少8位的password", "令牌：上下文长度为1024个词元，模型是GPT2，每个汉字约一个令牌", "token：训练集共有1234567个，GPT2分词",
    "每个token：约1.5个汉字，英文BPE更少一些", "忘记密码：https://example.org/reset9", "密码:params.yaml", "令牌：Qwen2.5-0.5B", "forward_pass = model.forward", "tokens = tokenizer.encode(text)", "train-zh.bin: sha256 388e4975c245a858802b5065fc1542473e647f5bae942fa3787ed51f65771d90"])
def test_ordinary_words_stay(planted: None, text: str):
    assert masked(text) == text


def test_J14_the_hash_of_a_token_is_no_token():
    for text in ("sha256_of_tokens: 388e4975c245a858802b5065fc1542473e647f5bae942fa3", "tokens.digest = 388e4975c245a858802b", 'x-md5-of-credentials="388e4975c245a858802b"'):
        assert masked(text) == text


@pytest.mark.parametrize("text", ["set=password=topsecret1", "export token='a b' token=abcd1234abcd1234", "note: api_key=abcd1234abcd1234, password: topsecret1", "a.b-password='topsecret1'"])
def test_J14_a_secret_behind_other_names_is_found(text: str):
    clean = masked(text)
    assert MASK in clean and "topsecret1" not in clean and "abcd1234" not in clean and masked(clean) == clean


@pytest.mark.parametrize("word", ["388e4975c245a858", "secret", "word.", "-", "tokenpasswd_", "token=", "token:", "secret='", 'api_key"', "=", " ", "a b="])
def test_J14_a_line_of_a_megabyte_is_read_to_its_end(word: str):
    line = word * (2**20 // len(word))
    clean = masked(f"{line}\n password: topsecret1 {line}\nAPI_TOKEN=abcd1234abcd1234")
    assert "topsecret1" not in clean and "abcd1234" not in clean
    if "=" not in word and ":" not in word:
        assert clean == f"{line}\n password: {MASK} {line}\nAPI_TOKEN={MASK}"


def test_what_is_committed_stays_as_it_is():
    """A false alarm would change the copy of a good settings file."""
    for name in ("params.yaml", "dvc.yaml", "sources.yaml", "versions.yaml", "requirements.lock", "components/chain.py", "README.md"):
        text = (ROOT / name).read_text()
        assert masked(text) == text, name


def test_variables_that_hold_no_secret_are_not_taken_for_one():
    held = {"TOKENIZERS_PARALLELISM": "false-or-true", "HF_TOKEN_PATH": "where-it-lies", "SSH_AUTH_SOCK": "/tmp/agent.123", "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json", "API_TOKEN": "short"}
    assert masking.secret_values(held) == []


def test_J14_variables_with_a_short_word_for_password_are_known():
    held = {"DB_PASS": "open-sesame", "MYSQL_PWD": "open-sesame-2", "REDIS_AUTH": "open-sesame-3", "数据库密码": "open-sesame-4", "PWD": "where it is", "MLFLOW_TRACKING_AUTH": "kubernetes"}
    assert sorted(masking.secret_values(held)) == ["open-sesame", "open-sesame-2", "open-sesame-3", "open-sesame-4"]


def test_J14_the_uncommitted_difference_holds_no_secret(planted: None, tmp_path: Path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "notes.md").write_text("steps: 5\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    (tmp_path / "notes.md").write_text(f"steps: 6\nAPI_TOKEN=abcd1234abcd1234\n{SECRET}\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9s\n")
    difference = lineage.git_state(tmp_path)[1]
    assert b"+steps: 6" in difference and b"+caf\xe9s" in difference
    assert b"abcd1234" not in difference and SECRET.encode() not in difference and MASK.encode() in difference


def test_J14_the_words_of_a_failed_stage_hold_no_secret(planted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any):
    def fail(*_: Any) -> None:
        raise RuntimeError(f"403 with {SECRET}")

    monkeypatch.setattr(chain, "run_stage", fail)
    outcome = chain.attempt(chain.BY_NAME["clean"], Layout(root=tmp_path))
    assert outcome["message"] == f"RuntimeError: 403 with {MASK}"
    shown = capfd.readouterr().err
    assert "Traceback" in shown and SECRET not in shown


def test_J14_errors_go_on_without_a_secret_and_with_their_kind(planted: None):
    with pytest.raises(UserError, match=r"refused \*{8}"), masking.kept_from_errors():
        raise UserError(f"refused {SECRET}")
    with pytest.raises(RuntimeError, match=r"^ValueError: refused \*{8}$") as caught, masking.kept_from_errors():
        raise ValueError(f"refused {SECRET}")
    assert caught.value.__suppress_context__, "the traceback shows no other"
    with pytest.raises(ValueError, match="plain"), masking.kept_from_errors():
        raise ValueError("plain")


def test_J14_settings_among_the_artifacts_hold_no_secret(planted: None, tmp_path: Path):
    layout = Layout(root=tmp_path / "checkout")
    layout.params.parent.mkdir()
    layout.params.write_text(f"corpus:\n  source: https://me:p4ssw0rd@example.org/x\n  note: {SECRET}\n")
    lineage.gather(tmp_path / "run", layout, b"", {})
    kept = (tmp_path / "run" / "settings" / "params.yaml").read_text()
    assert "p4ssw0rd" not in kept and SECRET not in kept and "example.org" in kept
