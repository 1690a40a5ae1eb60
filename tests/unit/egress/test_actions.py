"""What becomes of what was found: the policy's choice per class and per rule, end to end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest

from proxy.egress.config import Action, Place, Redaction
from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.actions import Blocked, Treatment, Treatments, treat
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.placeholders import Pseudonyms
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker
from proxy.errors import ConfigError

from .harness import KEY, OTHER, Proxy, Upstream, chat, completion, delta, reply, stream
from .samples import SECRETS

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())
MAIL = "jane.doe@example.org"
PHONE = SECRETS["phone-number"]


def block(
    group: str | None,
    action: Action,
    *restore: Place,
    rule: str | None = None,
    expires: date | None = None,
) -> Redaction:
    return Redaction("one", 7, group, rule, action, frozenset(restore), expires)


def masker(*redactions: Redaction, preset: str = "standard", sent: bool = True) -> Masker:
    return Masker(SCANNER, GUARD, treat(BOOK, preset, redactions, Pseudonyms()), sent=sent)


def test_a_class_outside_the_preset_is_treated_as_the_policy_says() -> None:
    assert masker().text(f"to {MAIL}") == f"to {MAIL}"
    assert masker(block("email", "mask")).text(f"to {MAIL}") == "to [REDACTED:email-address]"
    masked = masker(block("email", "pseudonymise")).text(f"to {MAIL}")
    assert masked.startswith("to ANON-EMAIL-") and len(masked) == 27


def test_a_rule_goes_before_its_class() -> None:
    text = f"{PHONE}, {SECRETS['iban']}, {SECRETS['card-number']}"
    one = masker(block(None, "allow", rule="iban", expires=date.max), block("payment", "mask"))
    assert one.text(text) == (f"[REDACTED:phone-number], {SECRETS['iban']}, [REDACTED:card-number]")
    assert "[REDACTED:iban]" in masker().text(text), "the control: without a block it is masked"


def test_a_blocked_value_raises_and_names_only_the_rule() -> None:
    blocking = masker(block("phone", "block"))
    assert blocking.text("call me") == "call me"
    with pytest.raises(Blocked) as caught:
        blocking.text(f"call {PHONE}")
    assert caught.value.rule == "phone-number"
    assert PHONE not in str(caught.value) and "12345678" not in str(caught.value)
    channel = Channel(masker(block("phone", "block")), HOLD)
    with pytest.raises(Blocked):
        [channel.feed(c) for c in f"call {PHONE} now"]


def test_where_kinds_overlap_the_stricter_action_holds() -> None:
    # The address of the mail rule takes in the password: "pw@host.example".
    text = "ftp://bob:Tr0ub4dor@mail.example.org/x"
    both = masker(block("email", "pseudonymise"))
    assert "Tr0ub4dor" not in both.text(text) and "ANON-" not in both.text(text)
    allowed = masker(block("email", "allow", expires=date.max))
    assert "Tr0ub4dor" not in allowed.text(text), "what is allowed shields nothing else"
    with pytest.raises(Blocked):
        masker(block("email", "pseudonymise"), block("secret", "block")).text(text)


def test_keys_in_use_are_masked_whatever_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    allowing = masker(block("secret", "allow", expires=date.max))
    assert allowing.text(SECRETS["openai-key"]) == SECRETS["openai-key"]
    monkeypatch.setattr(KeyGuard, "mask", lambda _self, text: (text.replace(KEY, "[KEY]"), 1))
    assert allowing.text(f"a {KEY}") == "a [KEY]"


def test_placeholders_survive_and_a_second_pass_changes_nothing() -> None:
    one = masker(block("email", "pseudonymise"), block("phone", "pseudonymise"))
    for text in (f"mail {MAIL}, call {PHONE}.", f"token: {MAIL}", f"password={MAIL}"):
        once = one.text(text)
        assert MAIL not in once
        assert one.text(once) == once
        channel = Channel(one, HOLD)
        assert "".join(map(channel.feed, once)) + channel.flush() == once


def test_a_placeholder_shields_no_secret_beside_it() -> None:
    one = masker(block("email", "pseudonymise"))
    name = one.text(MAIL)
    assert one.text(f"token={name}") == f"token={name}"
    for text in (f"token={name}.8f3Kq9ZxW2mPv7Ls", "token=ANON-EMAIL-8f3Kq9ZxW2mPv"):
        assert "8f3Kq9ZxW2mPv" not in one.text(text)


def test_long_values_are_masked_instead_of_named() -> None:
    short = SECRETS["private-key"]
    long = short.replace("-----END", ("x" * 64 + "\n") * 80 + "-----END")
    one = masker(block("secret", "pseudonymise"))
    assert one.text(short).startswith("ANON-PRIVA-")
    assert one.text(long) == "[REDACTED:private-key]"


def test_counts_tell_class_and_action() -> None:
    one = masker(block("email", "pseudonymise"))
    one.text(f"{MAIL} and {PHONE} and {PHONE}")
    assert one.tally.as_record() == {"email-address": 1, "phone-number": 2}
    assert one.tally.as_actions() == {"email": {"pseudonymise": 1}, "phone": {"mask": 2}}


def test_an_exception_ends_with_its_day() -> None:
    last = date(2027, 3, 1)
    several = Treatments(BOOK, "w", [block("phone", "allow", expires=last)])
    assert several.of("standard", last).actions["phone-number"] == "allow"
    assert several.of("standard", date(2027, 3, 2)).actions["phone-number"] == "mask"
    assert several.of("secrets", date(2027, 3, 2)).actions["phone-number"] == "allow", "the preset"


@pytest.mark.parametrize("wrong", [block("colours", "mask"), block(None, "mask", rule="no-such")])
def test_unknown_class_or_rule_stops_the_start(wrong: Redaction) -> None:
    with pytest.raises(ConfigError, match=r"workloads\.w\.redact\[1\]: no rule or class"):
        Treatments(BOOK, "workloads.w", [block("email", "mask"), wrong])


def test_every_rule_has_an_action_in_every_preset() -> None:
    for name in BOOK.classes:
        found: Treatment = SCANNER.presets[name]
        assert set(found.actions) == {rule.id for rule in BOOK.rules}
        assert found.groups == BOOK.classes[name]


REDACT = [
    {"id": "mails", "line": 60, "class": "email", "action": "pseudonymise", "restore": ["text"]},
    {"id": "phones", "line": 66, "class": "phone", "action": "block", "restore": []},
]
Start = Callable[..., Proxy]


@pytest.fixture(scope="module")
def treating(
    tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream
) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path_factory.mktemp("egress"), shared_upstream, workload={"redact": REDACT})
    proxy.listen()
    proxy.listen("other")
    proxy.unlock()
    yield proxy
    assert proxy.close() == b"", "the proxy printed something"


def content(answer: Any) -> str:
    return str(answer.json["choices"][0]["message"]["content"])


def test_blocked_request_is_refused_before_anything_leaves(
    treating: Proxy, upstream: Upstream
) -> None:
    answer = treating.ask(f"call {PHONE}")
    assert (answer.status, answer.code) == (422, "secret_blocked")
    assert b"phone-number" in answer.body and PHONE.encode() not in answer.body
    assert not upstream.seen
    record = treating.last()
    assert record["verdict"] == "refused" and record["rule"]["id"] == "models"
    assert record["actions"]["request"] == {"phone": {"block": 1}}
    assert treating.ask("call me").status == 200, "the control: without a number it passes"


def test_blocked_answer_is_not_passed_on(treating: Proxy, upstream: Upstream) -> None:
    upstream.answer = reply(completion(f"call {PHONE}"))
    answer = treating.ask("whom?")
    assert (answer.status, answer.code) == (502, "secret_blocked")
    assert b"12345678" not in answer.body
    upstream.answer = stream([delta("so call "), delta(PHONE), delta(" now"), b"data: [DONE]\n\n"])
    answer = treating.ask("whom?", stream=True)
    assert answer.events()[-1]["error"]["code"] == "secret_blocked"
    assert b"12345678" not in answer.body and answer.text().startswith("so ")


def test_configuration_without_a_redact_list_means_the_preset(proxy: Proxy) -> None:
    assert proxy.ask(f"call {PHONE}").status == 200


@pytest.mark.parametrize(
    ("redact", "says"),
    [
        ([{**REDACT[0], "class": "colours"}], b"redact[0]: no rule or class is called colours"),
        ([{**REDACT[0], "action": "shrug"}], b"unknown action"),
        ([{**REDACT[0], "action": "allow"}], b"until when"),
        ([{**REDACT[0], "rule": "iban"}], b"either a class or a rule"),
    ],
)
def test_proxy_does_not_start_with_a_wrong_redact_list(
    start: Start, redact: list[object], says: bytes
) -> None:
    proxy = start(workload={"redact": redact})
    assert proxy.process.wait(20) == 1
    assert says in proxy.close()


NAME = re.compile(r"ANON-[A-Z0-9]{5}-[A-Z0-9]{13}")


def sent_name(upstream: Upstream) -> str:
    """The placeholder that the upstream saw last."""
    (found,) = set(NAME.findall(upstream.seen[-1].body.decode()))
    return str(found)


def test_a_value_goes_out_as_a_placeholder_and_comes_back_in_text(
    treating: Proxy, upstream: Upstream
) -> None:
    assert treating.ask(f"write to {MAIL}").status == 200
    name = sent_name(upstream)
    assert MAIL.encode() not in upstream.seen[-1].raw
    document = completion(f"I wrote to {name.lower()}, see https://x.example/?m={name}")
    call = {"function": {"name": "mail", "arguments": json.dumps({"to": name})}}
    document["choices"][0]["message"]["tool_calls"] = [call]
    document["id"] = name
    upstream.answer = reply(document, x_ratelimit_note=name)
    answer = treating.ask(f"again to {MAIL}")
    assert sent_name(upstream) == name, "the same in every turn"
    message = answer.json["choices"][0]["message"]
    assert message["content"] == f"I wrote to {MAIL}, see https://x.example/?m={name}"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"to": name}
    assert answer.json["id"] == name and MAIL not in str(answer.headers)
    record = treating.last()
    assert record["actions"]["request"] == {"email": {"pseudonymise": 1}}
    assert record["actions"]["response"]["placeholder"]["restored"] == 1
    audit = treating.audit_path.read_text()
    assert MAIL not in audit and name not in audit


def test_a_placeholder_in_pieces_comes_back_in_a_stream(
    treating: Proxy, upstream: Upstream
) -> None:
    treating.ask(f"write to {MAIL}")
    name = sent_name(upstream)
    pieces = [delta(c) for c in f"to {name}, to {name[:9]}"]
    arguments = [
        delta(delta={"tool_calls": [{"index": 0, "function": {"arguments": c}}]})
        for c in json.dumps({"to": name})
    ]
    upstream.answer = stream([*pieces, *arguments, b"data: [DONE]\n\n"])
    answer = treating.ask("stream it", stream=True)
    assert answer.text() == f"to {MAIL}, to {name[:9]}"
    told = "".join(
        call["function"]["arguments"]
        for event in answer.events()
        if isinstance(event, dict)
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", ())
    )
    assert json.loads(told) == {"to": name}, "tool arguments were not named"


def test_no_workload_gets_what_another_sent_nor_what_the_model_wrote(
    treating: Proxy, upstream: Upstream
) -> None:
    treating.ask(f"write to {MAIL}")
    name = sent_name(upstream)
    upstream.answer = reply(completion(f"to {name}"))
    other = treating.request(chat("to whom?"), workload="other", token=OTHER)
    assert content(other) == f"to {name}"
    assert content(treating.ask("to whom?")) == f"to {MAIL}", "the control"
    upstream.answer = reply(completion("to john.roe@example.org"))
    assert NAME.fullmatch(content(treating.ask("whom else?"))[3:])


def test_a_placeholder_typed_by_hand_is_plain_text_or_the_own_value(
    treating: Proxy, upstream: Upstream
) -> None:
    treating.ask(f"write to {MAIL}")
    name = sent_name(upstream)
    foreign = "ANON-EMAIL-" + "0" * 13
    treating.ask(f"is {name} or {foreign} mine?")
    said = upstream.seen[-1].json["messages"][0]["content"]
    assert said == f"is {name} or {foreign} mine?"
    upstream.answer = reply(completion(said))
    assert content(treating.ask("well?")) == f"is {MAIL} or {foreign} mine?"
