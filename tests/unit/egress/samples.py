"""One made-up value of each kind, composed at run time so that this file holds none of them."""

from __future__ import annotations

import base64
import json
import random
import string

_random = random.Random(7)  # samples, not secrets
_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def draw(size: int, alphabet: str = _ALNUM) -> str:
    """Return `size` characters that look random."""
    while True:
        value = "".join(_random.choice(alphabet) for _ in range(size))
        if any(c.isdigit() for c in value) or not any(c.isdigit() for c in alphabet):
            return value


def _jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": draw(8)})
    encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return ".".join([*encoded, draw(43)])


def _pem() -> str:
    lines = "\n".join(draw(64, _ALNUM + "+/") for _ in range(12))
    return f"-----BEGIN RSA {'PRIVATE'} KEY-----\n{lines}\n-----END RSA {'PRIVATE'} KEY-----"


# The kind, and a value that is masked as a whole wherever it stands.
SECRETS = {
    "openai-key": "sk" + "-proj-" + draw(48),
    "anthropic-key": "sk" + "-ant-api03-" + draw(93) + "AA",
    "aws-access-key-id": "AKIA" + draw(16, string.ascii_uppercase + "234567"),
    "github-token": "gh" + "p_" + draw(36),
    "github-fine-grained-token": "github" + "_pat_" + draw(82),
    "gitlab-token": "gl" + "pat-" + draw(20),
    "slack-token": "xox" + "b-123456789012-1234567890123-" + draw(24),
    "stripe-key": "sk" + "_live_" + draw(24),
    "google-api-key": "AI" + "za" + draw(35),
    "huggingface-token": "hf" + "_" + draw(34, string.ascii_letters),
    "npm-token": "npm" + "_" + draw(36),
    "digitalocean-token": "dop" + "_v1_" + draw(64, _HEX),
    "databricks-token": "da" + "pi" + draw(32, _HEX),
    "sendgrid-key": "SG" + "." + draw(22) + "." + draw(43),
    "jwt": _jwt(),
    "private-key": _pem(),
    "phone-number": "+49 30 12345678",
    "card-number": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
}
# The kind, the text round the value, and the value; only the value is masked.
IN_CONTEXT = [
    ("url-password", "postgres://admin:{}@db.example/x", draw(14)),
    ("password", "password: {} ok", draw(12) + "!"),
    ("password", "The password is {} today", draw(12) + "!"),
    ("named-secret", 'api_key = "{}";', draw(32)),
    ("authorization-header", "curl -H 'Authorization: Bearer {}'", draw(40)),
    ("named-secret", "<accessToken>\n    {}\n</accessToken>", draw(30)),
    ("telegram-bot-token", "bot 123456789:{} x", "AA" + draw(33)),
    (
        "slack-webhook",
        "https://hooks.slack.com/{} x",
        "services/T" + draw(9) + "/B" + draw(9) + "/" + draw(24),
    ),
]
