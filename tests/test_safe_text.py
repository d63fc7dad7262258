"""Secrets stay in the process that has them, and nobody's text commands a terminal."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sessions import Rehearsed

from train_cloud import safe_text
from train_cloud.cli import main
from train_cloud.errors import InputError
from train_cloud.run import layout
from train_cloud.run.head import Lease, Token, read_head
from train_cloud.run.session import begin_session, read_sessions
from train_cloud.safe_text import clean, hide, is_private, looks_like_a_key, masked, masked_values
from train_cloud.store import open_store

SECRET = 'sësam/öffne "dich"+1'
ESCAPES = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://evil\x1b\\link\x9b2J\x07\x08\u202eend"
CLEANED = "red link2Jend"


@pytest.fixture
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(safe_text, "_hidden", {})
    monkeypatch.setattr(safe_text, "_pattern", None)
    monkeypatch.delenv(safe_text.VARIABLE, raising=False)
    yield
    os.environ.pop(safe_text.VARIABLE, None)


@pytest.mark.usefixtures("nothing_hidden")
def test_a_hidden_value_is_masked_however_it_is_written() -> None:
    hide({"MY_TOKEN": SECRET, "SHORT": "abc", "PEM": "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n"})
    forms = (
        SECRET,
        quote(SECRET, safe=""),
        json.dumps(SECRET)[1:-1],
        repr({"key": SECRET}),
        base64.b64encode(SECRET.encode()).decode(),
        f"https://user:{SECRET.split('/')[0]}@host/path",
    )
    for form in forms:
        assert SECRET[:5] not in masked(f"before {form} after").replace(quote(SECRET[:5]), "")
        assert masked(f"before {form} after") != f"before {form} after"
    assert masked("MIIEvQIBADANBg") == "[PEM]"
    assert masked("abc says SHORT") == "abc says SHORT"
    assert masked("s3://bucket/a and https://host/x?y=a:b@c") == "s3://bucket/a and https://host/x?y=a:b@c"
    assert masked("git+https://me:gh0token@github.com/x") == "git+https://***@github.com/x"
    assert masked_values({"a": [SECRET, 1, None], SECRET: {"b": f"x{SECRET}"}}) == {
        "a": ["[MY_TOKEN]", 1, None],
        SECRET: {"b": "x[MY_TOKEN]"},
    }
    assert os.environ[safe_text.VARIABLE].split(",") == ["MY_TOKEN", "SHORT", "PEM"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (ESCAPES, CLEANED),
        ("a\tb\nc\r\nd\re", "a\tb\nc\nd\ne"),
        ("\x1b]52;c;cm0gLXJmIC8=", ""),
        ("\x1bP+q\x1b\\x", "x"),
        ("plain ünïcode 漢字 ✓", "plain ünïcode 漢字 ✓"),
    ],
)
def test_clean(text: str, plain: str) -> None:
    assert clean(text) == plain


@pytest.mark.parametrize(
    ("name", "is_key"),
    [
        ("WANDB_API_KEY", True), ("GITHUB_TOKEN", True), ("DB_PASSWORD", True), ("AWS_SECRET", True), ("token", True),
        ("KEYBOARD_DELAY", False), ("PATH", False), ("MONKEY", False), ("TOKENIZERS_PARALLELISM", False),
    ],
)  # fmt: skip
def test_names_that_look_like_keys(name: str, is_key: bool) -> None:
    assert looks_like_a_key(name) is is_key


@pytest.mark.parametrize(
    "settings",
    [
        {"env": {"MY_TOKEN": [SECRET]}},
        {"env": {"MY_TOKEN": f"{SECRET}\nx"}},
        {"env": {SECRET: "x"}},
        {"env": SECRET},
        {"secrets": {"MY_TOKEN": SECRET}},
        {"secrets": SECRET},
        {"webhook": f"https://{SECRET}"},
        {"wandb": {"project": "x", "api_key": SECRET}},
        {"api_token": SECRET},
        {"environment": {"id": "CartPole-v1", "kwargs": 3, "password": SECRET}},
    ],
)
def test_no_refused_value_is_echoed(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"run_id": "a", "algorithm": "ppo", "total_timesteps": 10, "save_frequency": 5, **settings}
    run.setdefault("environment", {"id": "CartPole-v1"})
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    assert main(["validate", str(tmp_path / "run.yaml")]) == 64
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("train-cloud: ")
    if list(settings.get("env", ())) != [SECRET]:  # the name itself is what is wrong
        assert SECRET[:5] not in said and "sesam" not in said
    assert main(["validate", str(tmp_path / "run.yaml"), "--set", f"env.MY_TOKEN {SECRET}"]) == 64
    assert SECRET[:5] not in capsys.readouterr().err


def test_an_error_of_a_field_that_holds_no_secret_shows_its_value() -> None:
    assert str(InputError("environment.module", "my_tokens", "fix")) == "environment.module: 'my_tokens': fix"
    assert is_private("env.X") and is_private("secrets") and not is_private("environment.id")


def test_what_a_store_says_reaches_no_terminal_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(layout.run_url(str(tmp_path), "evil"))
    details = {"host": ESCAPES, "instance_type": "[link=http://evil]x[/link]", "run_file": {"total_timesteps": 10}}
    session = begin_session(store, tmp_path / "state", instance_id=ESCAPES, boot_id="b", details=details, persist=False)
    lease = Lease.take(store, Token(session.number, 0), ESCAPES)
    lease.record_failure(f"Error: {ESCAPES}\n  File x")
    # as a former version has written it
    key = layout.start_key(1)
    store.put(key, bytes(store.get(key).body).replace(b'"host"', b'"ended_by": "\\u001b[5m", "host"'))
    store.put("artifacts/logs/session-000001.log", f"loss {ESCAPES}\n10%\r20%\n".encode())
    for command in (["status"], ["status", "evil"], ["logs", "evil"], ["status", f"a{ESCAPES}"], ["pull", "evil"]):
        main([*command, "--store", str(tmp_path), *(["--out", str(tmp_path / "out")] if "pull" in command else [])])
        out, err = capsys.readouterr()
        assert out + err
        for text in (out, err):
            assert clean(text) == text and "\x1b" not in text, command
    read = read_head(store)
    assert read is not None and read[0].reason == f"Error: {CLEANED}\n  File x"
    assert read_sessions(store)[0].start["host"] == CLEANED


SCRIPT = """\
import logging, os, sys
import gymnasium
from stable_baselines3 import PPO
import train_cloud


def main():
    run = train_cloud.run_file()
    secret = os.environ["MY_TOKEN"]
    print("printed", secret, flush=True)
    logging.getLogger("train_cloud.mine").warning("logged %s", secret)
    small = {"n_steps": 50, "batch_size": 50, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    model = PPO("MlpPolicy", "CartPole-v1", seed=1, **small)
    model.learn(run.total_timesteps, callback=train_cloud.checkpoints())
    raise RuntimeError(f"\\x1b[31mno access with {secret}")
"""


@pytest.mark.slow
def test_no_text_of_a_run_has_its_secret(
    warm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "script.py").write_text(SCRIPT)
    settings = {
        "total_timesteps": 100,
        "save_frequency": 50,
        "entry_point": "script:main",
        "arguments": ["--token", "gh0-pasted-token"],
        "code": {"folder": "code"},
        "experiment": "keys",
        "secrets": {"MY_TOKEN": "/mine/token"},
        "env": {"OTHER_API_KEY": "gh0-pasted-token", "PLAIN": "value"},
    }
    run = Rehearsed(warm, tmp_path, settings)
    assert run.session(env={"MY_TOKEN": SECRET}) == 1
    said = run.log()
    assert "printed [MY_TOKEN]" in said and "logged [MY_TOKEN]" in said
    assert "RuntimeError: no access with [MY_TOKEN]" in said and "\x1b" not in said
    assert said.count("env.OTHER_API_KEY: the name looks like a key's") == 1
    assert "no access with [MY_TOKEN]" in (run.head().reason or "")
    as_written = {"run.yaml", "run", "manifest.json"}  # the run file as it is, and the run's identity
    for path in (path for where in ("store", "state") for path in (tmp_path / where).rglob("*") if path.is_file()):
        body = path.read_bytes()
        assert SECRET.encode() not in body and json.dumps(SECRET)[1:-1].encode() not in body, path
        assert path.name in as_written or b"gh0-pasted-token" not in body, path
    (session,) = read_sessions(run.store)
    assert session.start["run_file"]["env"] == {"OTHER_API_KEY": "[OTHER_API_KEY]", "PLAIN": "value"}
    assert main(["status", "a-run", "--store", run.root]) == 0
    assert main(["report", "a-run", "--store", run.root, "--out", str(tmp_path / "page.html")]) == 0
    assert SECRET not in capsys.readouterr().out + (tmp_path / "page.html").read_text()


def test_children_hide_what_their_parent_hides() -> None:
    program = "import os; from train_cloud.safe_text import *; adopt(); guard(); print(os.environ['MY_TOKEN']); 1 / 0"
    environment = {**os.environ, "MY_TOKEN": SECRET, safe_text.VARIABLE: "MY_TOKEN,GONE"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[MY_TOKEN]\n" and "ZeroDivisionError" in done.stderr
