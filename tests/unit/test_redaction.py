"""No secret is in what is stored: texts are cleaned, names that carry one are refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autopeft.adapters import Adapter
from autopeft.cli import app
from autopeft.errors import InputError
from autopeft.job import SILENT, Job, Outcome, Report
from autopeft.redaction import redacted, refuse_secrets
from autopeft.report.html import write_report
from autopeft.setting import Backbone, describe_backbone
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.study import Study
from tests.contracts.cheap_jobs import SHAPE, formula, setting
from tests.contracts.cheap_studies import definition
from tests.hostile import save_backbone, small_adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return small_adapter(save_backbone(tmp_path_factory.mktemp("backbone")))


@pytest.fixture
def cli() -> Callable[..., Any]:
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "DB_PASSWORD": 'pass "word" \\ with quotes',
    "PGPASSWD": "ünïcödé-passwd",
    "SERVICE_CREDENTIALS": "first line of it\nsecond line of it",
    "CLIENT_SECRET": "s3cr3t-s3cr3t",
}
FORMS = {
    "a hub token": "hf_ZyXwVuTsRqPoNmLkJiHg",
    "a user in a URL": "https://ann:pa55w0rd@host.example/x",
    "a token in a URL": "https://0123456789abcdef@host.example/x",
    "a key of a cloud": "AKIAIOSFODNN7EXAMPLE",
    "a forge's token": "ghp_0123456789abcdefghijABCDEFGHIJ",
    "a header": "Authorization: Bearer abcdefghijklmnopqrstuvwxyz",
    "a signed URL": "https://host.example/x?a=1&X-Amz-Signature=0123456789abcdef",
    "a secret key": "aws_secret_access_key = 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEZ'",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
}
HIDDEN = ["ZyXwVuTsRqPoNmLkJiHg", "pa55w0rd", "0123456789abcdef", "IOSFODNN7EXAMPLE", "abcdefghijklmnopqrstuvwxyz",
          "wJalrXUtnFEMI", "MIIEowIBAAKCAQEA"]  # fmt: skip


def test_values_of_secret_variables_are_taken_out_in_every_spelling() -> None:
    for name, value in SECRETS.items():
        for spelled in (value, repr(value), json.dumps(value), f"--token={value}!"):
            found = redacted(f"before {spelled} after", SECRETS)
            assert found.startswith("before "), name
            assert found.endswith(" after"), name
            assert f"[redacted: {name}]" in found
            assert not any(line in found for line in value.splitlines()), name


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    found = redacted(f"before {text} after", {})
    assert found.startswith("before ")
    assert found.endswith(" after")
    assert "[redacted]" in found
    assert not any(hidden in found for hidden in HIDDEN)


def test_ordinary_text_stays_as_it_is() -> None:
    environment = {"TOKENIZERS_PARALLELISM": "parallel", "MONKEY": "short", "HOME": "/home/ann", "X_KEY": ""}
    for text in (
        "hf_hub_download(repo_id, token=None) in /home/ann/parallel", "a short key: encoder.0.attention.key@3",
        "https://host.example/a@b?key_id=3", "sha256 0123456789abcdef" * 4, "ann@host.example", "Traceback: x:y@z",
    ):  # fmt: skip
        assert redacted(text, environment) == text


def test_where_a_key_lies_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_KEY_FOLDER", str(tmp_path))
    refuse_secrets(str(tmp_path / "reviews.csv"), "task.train")
    assert redacted(f"no file {tmp_path}/x") == f"no file {tmp_path}/x"
    monkeypatch.setenv("SSH_KEY_FOLDER", f"{tmp_path}/gone")
    assert redacted(f"no file {tmp_path}/gone") == "no file [redacted: SSH_KEY_FOLDER]"


def test_redaction_takes_time_in_proportion() -> None:
    # 200 kB of what begins like each pattern: a search that is not linear would take hours.
    for start in ("hf_", "https://a", "eyJaaaaaaaa.", "-----BEGIN ", "bearer ", "aws_secret_access_key = ", "AKIA"):
        assert len(redacted(start * (200_000 // len(start)), {})) > 0


URLS = [
    "https://ann:pa55w0rd@host.example/data.csv",
    "hf://datasets/x?token=0123456789abcdef",
    "hf_ZyXwVuTsRqPoNmLkJiHg",
]


@pytest.mark.parametrize("url", URLS)
def test_names_that_carry_a_secret_are_refused_before_they_are_stored(tmp_path: Path, url: str) -> None:
    with_data = replace(setting(), source=replace(setting().source, validation=url))
    with_backbone = replace(setting(), backbone=Backbone(url, "0" * 64, SHAPE))
    for made in (with_data, with_backbone):
        with pytest.raises(InputError, match=r"carries a password or a token.* log in outside") as refusal:
            Study.start(tmp_path / "study", definition(setting=made))
        assert not any(hidden in str(refusal.value) for hidden in HIDDEN)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="carries a password"):
        describe_backbone(url)
    with pytest.raises(InputError, match="carries a password"):
        refuse_secrets(url, "x")


def tell_secrets(job: Job, report: Report = SILENT) -> Outcome:
    """Fails with all it knows, in its message, its traceback and what it prints; every other trial completes."""
    known = [os.environ.get(name, "") for name in SECRETS] + list(FORMS.values())
    if job.number % 3 == 0:
        print(*known, file=sys.stderr, flush=True)
        os._exit(3)
    if job.number % 3 == 1:
        try:
            raise KeyError(known)
        except KeyError:
            raise ValueError("x" * 480 + " ".join(known)) from None
    return formula(job)


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_no_secret_is_in_any_file_of_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, cli: Callable[..., Any]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    kept = definition(trials=6, evaluate="tests.unit.test_redaction:tell_secrets", baselines=())
    inline = InlineExecutor(lambda job, report=SILENT: tell_secrets(replace(job, number=1 + job.number % 2)))
    with Study.start(tmp_path / "study", kept) as study:
        study.run(executor=inline if executor == "inline" else "process")
        failures = [t.failure for t in study.trials if t.failure]
        assert failures
        write_report(study, tmp_path / "report.html")
        best = study.front.trials[0].number
        study.save(best, tmp_path / "export")
    (tmp_path / "shown").write_text("".join(cli("show", tmp_path / "study", f.number).output for f in study.trials))
    values = [line for value in SECRETS.values() for line in value.splitlines()]
    spelled = {v for value in values for v in (value, json.dumps(value)[1:-1], repr(value)[1:-1])} | set(HIDDEN)
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        # The first half of a secret tells too much as well: a message may not be cut before it is cleaned.
        for secret in spelled:
            half = secret[: max(8, len(secret) // 2)]
            assert half.encode() not in content, (path, half)
            assert json.dumps(half)[1:-1].encode() not in content, (path, half)
    assert any("[redacted" in (f.message + f.traceback) for f in failures)


def test_no_secret_is_in_a_card(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2hunter2")
    named = replace(adapter, reference="https://ann:pa55w0rd@host.example/m", labels=("hunter2hunter2", "b"))
    card = named.files()["README.md"].decode()
    assert "pa55w0rd" not in card
    assert "hunter2hunter2" not in card
