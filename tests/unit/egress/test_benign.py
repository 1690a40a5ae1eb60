"""Ordinary text passes byte for byte: programs, documents, tables, pictures, numbers."""

from __future__ import annotations

import base64
import hashlib
import keyword
import random
import string
import sys
import textwrap

import pytest

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import checks, rules
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())
NOISE = hashlib.shake_128(b"noise").digest(90_000)

TEXTS = {
    "python": '''
        token = auth.get_token_v2(request)          # see RFC 6749, section 4.1.3
        negotiated_token = base64.standard_b64decode(answer)
        private_key: ed25519.Ed25519PrivateKey = ed25519.Ed25519PrivateKey.generate()
        password = getpass.getpass(prompt="Password: ") or os.environ["DB_PASSWORD"]
        pwd_pwd = pwd + pwd; password=request.form["password"]; secret = self.config.secret
        if token._value is _NoValueSet.NO_VALUE_SET: raise TokenMissingError(token.name)
        _SK_START = b"-----BEGIN OPENSSH PRIVATE KEY-----"
        MovedAttribute("HTTPPasswordMgr", "urllib2", "urllib.request")
        API_KEY_HEADER = "X-Request-Identity"; session_key_name = "current_user_session"
        assert Decimal("1.38435736E+12").quantize(Decimal("+35236450.6"))
        ''',
    "javascript": '''
        const tokenToMatch = astUtils.isTokenOnSameLine(prevToken, semiToken);
        if (token === firstTokenOfLine) { offsets.setDesiredOffset(token, firstTokenOfLine, 1); }
        h=this._rotl32(h,13),h=this._imul(h,5)+3864292196;m=(a<<8|b<<16)+16777216*c;
        this.accessToken = response.data.accessToken; export const SECRET = process.env.SECRET;
        s.RequestCancelled=-32800,s.lspReservedErrorRangeEnd=-32800;
        var t=5,n="5 0 2 0 2 0 2 2 2 1 2 0 3 0 2 0 2 0 2 0",r="6 0 3 16 2 98 2 3 3 6 2 0 2 3 3 14";
        ''',
    "settings": '''
        password_encryption = scram-sha-256     # or md5
        password: ${DB_PASSWORD}
        api_key: "{{ .Values.apiKey }}"
        secretKeyRef: {name: backend-credentials, key: database-password}
        client_secret: <your-client-secret>
        token: xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx
        AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE
        "pbkdf2-password": "1.2.1", "cookie-parser": "~1.4.6", "jsonwebtoken": "^9.0.2"
        docker run -it --rm -v $(PWD):/usr/src/app -u 1000:1000 node:20-alpine
        qemu: -vnc :0,password=on|off, -object secret,id=sec0,file=passwd.txt
        ''',
    "placeholders": '''
        api_key = "YOUR_API_KEY"; apiKey: "MY_SUPER_SECRET_KEY"; API_KEY=INSERT_YOUR_KEY_HERE_123
        OPENAI_API_KEY=sk-... or sk-xxxxxxxxxxxxxxxxxxxxxxxx or sk-your-openai-api-key-goes-here
        ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, token: ghp_abcdefghijklmnopqrstuvwxyz0123456789
        aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
        token: ${{ secrets.GITHUB_TOKEN }}; key={{ api_key }}; secret: !ref MySecret
        api_key: 00000000-0000-0000-0000-000000000000 or 11111111-2222-3333-4444-555555555555
        secret: 0123456789abcdef0123456789abcdef; token: abcdefghijklmnopqrstuvwxyz
        token: fake_token_for_testing_1234; secret: "dummy-secret-42"; clientSecret: "my-client"
        postgres://postgres:postgres@localhost/db amqp://guest:guest@localhost:5672 redis://:password@h
        https://user:pass@a.example mongodb+srv://<username>:<password>@cluster0.a.example
        curl -u user:password https://a.example; curl -H "Authorization: Bearer $TOKEN"
        secret_key_base: <%= ENV["SECRET_KEY_BASE"] %>; Authorization: Bearer YOUR_ACCESS_TOKEN
        Cookie: session=<your-session>; lang=en; mysql -u root -p mydb; sshpass -p $PASS ssh h
        ''',
    "prose": '''
        The password for this account is incorrect; passwords are stored as SHA-256 or argon2id.
        The password is 8-16 characters long. Bearer token authentication is required by OAuth2.
        The secret is to ask early; the token of thanks is a task-oriented, risk-free disk-image.
        Her key argument: authentication without authorisation is a password is forgotten problem.
        Fantasia, Malaysia and the pattern of buccaneers. TODAYINASIAANYSACKOFRICEFELLOVER.
        Der Kennwortmanager fragt nach dem Passwort; das Passwort ist falsch. Zugangsdaten folgen.
        Le mot de passe est obligatoire. La clave es la paciencia. Il token è scaduto ieri sera.
        ''',
    "numbers": '''
        order 4111111111111112, invoice 2026112310304711, ISBN 978-3-16-148410-0, EAN 4006381333931
        52.520008, 13.404954; 40.7128° N, 74.0060° W; 3.14159265358979323846
        2026-11-23T10:30:00+01:00, 23.11.2026, 11/23/26, 1699999999, 1699999999999, 10:30-12:45
        uid 12345678-1234-5678-1234-567812345678 and ids 1001 1002 1003 1004 1005
        +1 more, +2 to go, 1-2-3, 800x600, 12 345 678 EUR, $1,234,567.89, 0x7fffffffffff, 1e-9
        rows 5281 5282 5283 5284 and 6342 6343 6344 6345; <font> 0031 2044 0039 </font>
        ''',
    "hashes": f'''
        commit 3f786850e387550fdab836ed7e6dc881de23001b
        "integrity": "sha512-{base64.b64encode(hashlib.sha512(b"a").digest()).decode()}"
        sha256:{hashlib.sha256(b"b").hexdigest()}  ./package.tar.gz
        ETag: W/"{hashlib.md5(b"c", usedforsecurity=False).hexdigest()}"
        cache_key_{hashlib.sha256(b"d").hexdigest()} app.{hashlib.sha256(b"e").hexdigest()[:20]}.js
        traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
        numpy==1.26.4 --hash=sha256:{hashlib.sha256(b"f").hexdigest()}
        ''',
    "markup": (
        '<html><head><title>Downloads</title></head><body bgcolor="#8b7765"><table border="0">'
        '<tr><td width="120"><a href="http://a.example/"><img src="a.png" alt="x" /></a></td>'
        '<td><a href="http://b.example/"><img src="b.png" alt="y" /></a><a href="/c"><b>c</b></a>'
        "</td></tr></table><p><i><b><u><s>d</s></u></b></i></p></body></html>\n"
    ) * 3,
    "picture": f'<img src="data:image/png;base64,{base64.b64encode(NOISE).decode()}">',
    "mail": "Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(NOISE).decode(),
    "url-safe": f"/blob?data={base64.urlsafe_b64encode(NOISE).decode()}",
}  # fmt: skip


def finished(text: str) -> str:
    return Masker(SCANNER, GUARD, "standard").text(text)


@pytest.mark.parametrize("name", TEXTS)
def test_ordinary_text_of_its_kind_passes_byte_for_byte(name: str) -> None:
    text = textwrap.dedent(TEXTS[name])
    assert finished(text) == text
    short = text[:3000]
    channel = Channel(Masker(SCANNER, GUARD, "standard"), HOLD)
    passed = [channel.feed(short[n : n + 5]) for n in range(0, len(short), 5)]
    assert "".join(passed) + channel.flush() == short
    key = "gh" + "p_" + hashlib.sha256(name.encode()).hexdigest()[:36]
    assert finished(f"{text} {key}") == f"{text} [REDACTED:github-token]", "the control"


def test_names_are_told_from_random_values() -> None:
    """`checks.token`, with which every value that has no form of its own is judged."""
    names = {
        name
        for module in ("os", "ssl", "email", "asyncio")
        for name in dir(sys.modules.get(module) or __import__(module))
    }
    names |= {f"{a}_{b}" for a in keyword.kwlist for b in ("token", "session_key", "credentials")}
    long = [name for name in names if len(name) >= 12]
    wrong = [name for name in long if checks.token(name)]
    assert len(long) > 150 and len(wrong) <= 0.03 * len(long), wrong
    draw = random.Random(3)
    for alphabet in (
        string.ascii_letters + string.digits,
        string.ascii_lowercase + string.digits,
        string.ascii_uppercase + string.digits,
        string.hexdigits[:16],
        string.ascii_letters,
    ):
        values = ["".join(draw.choices(alphabet, k=24)) for _ in range(1000)]
        missed = [value for value in values if not checks.token(value)]
        assert len(missed) <= 10, f"{len(missed)} of 1000 in {alphabet}"
