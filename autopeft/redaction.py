"""Texts without secrets: what is stored in a study, a report or a card must not carry a token away. Torch-free."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Final

from autopeft.errors import InputError

SHORTEST: Final = 8
"""Values of fewer characters are left alone: they would be found in ordinary words."""

# "TOKENIZERS_PARALLELISM" names no token.
_NAMED: Final = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|KEY|CREDENTIAL", re.IGNORECASE)

# Each pattern keeps its groups; what lies between them goes. None of them can match in two ways, so none is slow.
_PATTERNS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"\bhf_(?:oauth_)?[A-Za-z0-9]{16,}",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})",
        r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{20,}",
        r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b",
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,20000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?",
        r"(?i)(\b(?:aws_)?secret_access_key\b[\"']?\s{0,3}[:=]\s{0,3}[\"']?)[A-Za-z0-9/+]{40}",
        r"(?i)(\b(?:bearer|basic)\s{1,3})[A-Za-z0-9._~+/=-]{16,}",
        r"(?i)([?&](?:access_token|token|api_key|apikey|key|secret|password|sig|signature|x-amz-signature)=)[^&\s\"'#]+",
    )
)
_IN_URL: Final = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/@\"'<>]{1,1000}@")


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Returns a text with secrets replaced by "[redacted]".

    Secrets are: values, of `SHORTEST` characters or more, of environment variables whose names say that they hold one
    (TOKEN, SECRET, PASSWORD, PASSWD, PASSPHRASE, KEY, CREDENTIAL) and that are no paths of this machine, as they are or
    as Python, JSON or a URL write them; user and password in a URL; and what has the form of a token of a hub, a forge
    or a cloud, or of a private key.

    Args:
        text: Any text, such as a traceback. Cut it afterwards, never before: half a secret is not recognised.
        environment: Names and values; those of this process where None.

    Example:
        >>> redacted("401 for hunter2hunter2 at https://ann:pw@host/x", {"HUB_TOKEN": "hunter2hunter2"})
        '401 for [redacted: HUB_TOKEN] at https://[redacted]@host/x'
    """
    for value, name in _secrets(os.environ if environment is None else environment):
        if value in text:
            text = text.replace(value, f"[redacted: {name}]")
    text = _IN_URL.sub(r"\1[redacted]@", text)
    for pattern in _PATTERNS:
        text = pattern.sub(r"\1[redacted]" if pattern.groups else "[redacted]", text)
    return text


def refuse_secrets(name: str | None, where: str) -> None:
    """Refuses a name, such as that of a file or a backbone, that carries a secret: it would be stored with the study.

    Args:
        name: The name; what is no text is no name.
        where: What the message names.

    Raises:
        InputError: The name holds a password, a token or the value of a secret environment variable; the message does
            not repeat it.

    Example:
        >>> refuse_secrets("https://ann:pw@host/model", "backbone")
        Traceback (most recent call last):
        ...
        autopeft.errors.InputError: backbone: 'https://[redacted]@host/model' carries a password or a token, which \
would be stored; log in outside (HF_TOKEN, a netrc file, a local copy) and leave it out of the name
    """
    if not isinstance(name, str) or (shown := redacted(name)) == name:
        return
    what = f"{shown!r} carries a password or a token, which would be stored"
    cure = "log in outside (HF_TOKEN, a netrc file, a local copy) and leave it out of the name"
    raise InputError(what, where=where, cure=cure)


def _secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns pairs of value and name, in every spelling, the longest value first."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        # Where a key lies is no secret, and "/home/ann" would be found in every path.
        if not _NAMED.search(name) or os.path.exists(value):  # noqa: PTH110 - any text may be asked for
            continue
        for line in {value, *value.splitlines()}:  # the first line of an error message may hold the first of a key
            for spelled in (line, repr(line)[1:-1], json.dumps(line)[1:-1], urllib.parse.quote(line, safe="")):
                if len(line.strip()) >= SHORTEST:
                    found.setdefault(spelled, name)
    return sorted(found.items(), key=lambda pair: (-len(pair[0]), pair[0]))
