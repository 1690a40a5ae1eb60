"""E-mails are parsed within bounds and never trusted."""

from __future__ import annotations

import time

import pytest
from assistant_house import letter
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.workflows.mail import ContentError, parse


def test_multipart_quoted_printable_and_encoded_names_are_read() -> None:
    mail = parse(letter("ordinary"))
    assert dict(mail.headers)["From"] == "Zoë Šimková <zoe.simkova@kaffeehaus.example>"
    assert "“Gläserne Küche”, Schloßstraße 7" in mail.text
    assert "<html>" not in mail.text
    assert mail.attachments == ("jahrestreffen.ics (text/calendar)",)


def test_base64_is_read_and_attachments_are_named_only() -> None:
    mail = parse(letter("api-key"))
    assert "+49 30 901820" in mail.text
    assert mail.attachments == ("journal-äöü.txt (text/plain)",)
    assert "exit status" not in str(mail)


def test_bare_utf8_in_headers_is_read() -> None:
    mail = parse("From: Zoë Šimková <z@x.example>\nSubject: Grüße\n ✓\n\nx\n")
    assert dict(mail.headers) == {"From": "Zoë Šimková <z@x.example>", "Subject": "Grüße ✓"}


def test_html_alone_loses_its_tags_and_scripts() -> None:
    html = "<style>p{}</style><p>Hello <b>you</b></p><script>alert(1)</script>"
    mail = parse(f"From: a@example.org\nContent-Type: text/html\n\n{html}\n")
    assert mail.text == "Hello you"


def test_unknown_charsets_and_broken_parts_do_not_stop_it() -> None:
    head = "From: a@example.org\nContent-Type: text/plain; charset=x-none\n"
    assert parse(f"{head}\nplain words\n").text == "plain words"
    broken = "From: a@b\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\nhello\n"
    assert "hello" in str(parse(broken))


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        ("no header at all", 400, "From"),
        ("Subject: x\n\nbody", 400, "From"),
        ("From: a@b\n" + "X: y\n" * 300 + "\nbody", 413, "headers"),
        ("From: " + "a@b, " * 2000 + "\n\nbody", 413, "header"),
        ("From: a@b\n\n" + "x" * (129 << 10), 413, "text"),
        (
            "From: a@b\nContent-Type: multipart/mixed; boundary=x\n\n"
            + "--x\n\na\n" * 100
            + "--x--\n",
            413,
            "parts",
        ),
    ],
)
def test_bounds_are_errors_that_say_what(content: str, status: int, says: str) -> None:
    with pytest.raises(ContentError) as caught:
        parse(content)
    assert caught.value.status == status
    assert says in caught.value.message


def _nested(levels: int, lines: int) -> str:
    opened = "".join(
        f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(levels)
    )
    return "From: a@b\n" + opened + "\n" + "x\n" * lines


@pytest.mark.parametrize(
    "content",
    [
        _nested(2000, 0),
        _nested(16, 500_000),
        "From: a@b\nContent-Type: text/plain" + "; a*0=b" * 100_000 + "\n\nx",
        "From: a@b\nContent-Type: multipart/digest; boundary=b\n\n" + "--b\n\n\n" * 10_000,
    ],
)
def test_what_would_keep_the_parser_busy_is_refused(content: str) -> None:
    begun = time.process_time()
    with pytest.raises(ContentError) as caught:
        parse(content)
    assert caught.value.status == 413
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    "content",
    [
        _nested(15, 38_000),
        "From: " + "a@b," * 1900 + "\n\nx",
        "From: a@b\nSubject: " + "=?utf-8?q?a?= " * 500 + "\n\nx",
        "From: a@b\nContent-Type: text/plain" + "; a*0=b" * 1000 + "\n\nx",
        "From: " + "(" * 8000 + "\n\nx",
        "From: a@b\n" + ("To: " + "a@b," * 1900 + "\n") * 120 + "\nx",
        "From: a@b\nContent-Type: multipart/mixed; boundary=b\n\n"
        + ("--b\nContent-Type: a/b" + "; a*0=b" * 1100 + "\n\nx\n") * 60,
        "From: a@b\nContent-Type: multipart/mixed; boundary=b\n\n"
        + ("--b\nContent-Type: a/b" + "; a*0=b" * 70 + "\n\nx\n") * 1900,
    ],
)
def test_the_worst_that_is_not_refused_takes_bounded_time(content: str) -> None:
    begun = time.process_time()
    try:
        parse(content)
    except ContentError as error:
        assert error.status in (400, 413)
    assert time.process_time() - begun < 3


def test_a_header_cannot_smuggle_a_line() -> None:
    mail = parse("From: a@b.example\nSubject: =?utf-8?q?A=0D=0AFrom=3A_fake?=\n\nx\n")
    assert str(mail).splitlines()[:2] == ["From: a@b.example", "Subject: A From: fake"]
    with pytest.raises(ContentError):  # in an address the library itself refuses it
        parse("From: =?utf-8?q?A=0ASubject=3A_fake?= <a@b.example>\n\nx\n")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_a_mail_or_a_content_error(text: str) -> None:
    try:
        parse("From: a@b\n" + text)
    except ContentError as error:
        assert error.status in (400, 413)
