"""A set of policies as one digest that anybody can compute, and a signature over it."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from supervisor.policy import signature
from supervisor.policy.signature import set_digest
from supervisor.vault import audit
from supervisor.vault.errors import Fault, VaultError
from supervisor.vault.header import Trusted

ROOT = Path(__file__).resolve().parents[3]
# As the module's description has it.
BY_HAND = (
    "find . -name '*.toml' -not -path './hosts/*' -print0 | LC_ALL=C sort -z"
    " | xargs -0 sha256sum | sha256sum"
)


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "policies", tmp_path / "policies"))


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-IS", ROOT / "supervisor", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def trusted(key: Ed25519PrivateKey, name: str = "team") -> Trusted:
    raw = key.public_key().public_bytes_raw()
    return Trusted(name, base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


def test_the_digest_is_what_two_common_tools_compute(policies: Path) -> None:
    said = subprocess.run(
        ["/bin/sh", "-c", BY_HAND], cwd=policies, capture_output=True, text=True, check=True
    ).stdout
    assert set_digest(policies).hex() == said.split()[0]
    assert command("policy", "digest", str(policies)).stdout.split() == [said.split()[0]]


def test_every_file_counts_and_the_hosts_do_not(policies: Path) -> None:
    digest = set_digest(policies)
    (policies / "hosts/demo.toml").write_text("another")
    (policies / "policies.sig").write_text("x")
    assert set_digest(policies) == digest
    for name in ("executor-main.toml", "groups/baseline.toml", "prices/openai.toml"):
        before = (policies / name).read_bytes()
        (policies / name).write_bytes(before + b"#")
        assert set_digest(policies) != digest, name
        (policies / name).write_bytes(before)
    (policies / "one-more.toml").write_text("")
    assert set_digest(policies) != digest
    (policies / "one-more.toml").unlink()
    (policies / "executor-main.toml").rename(policies / "executor-other.toml")
    assert set_digest(policies) != digest


def test_what_was_signed_is_known_by_its_signer(policies: Path, tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    pem = tmp_path / "key.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    done = command("policy", "sign", str(pem), str(policies))
    assert done.returncode == 0, done.stderr
    text = (policies / signature.FILE).read_bytes()
    digest = set_digest(policies)
    signers = [trusted(other, "other"), trusted(key)]
    assert audit.signer_of(signers, digest, text) == "team"
    for trust, what, wrong in (
        ([], digest, text),
        ([trusted(other)], digest, text),
        (signers, bytes(32), text),
        (signers, digest, b""),
        (signers, digest, b"no signature"),
        (signers, digest, b"A" * 86),
        (signers, digest, b"\xff" * 86),
    ):
        with pytest.raises(VaultError) as refused:
            audit.signer_of(trust, what, wrong)
        assert refused.value.fault is Fault.POLICIES_UNSIGNED


def test_nothing_is_signed_that_does_not_hold_together_or_with_another_kind_of_key(
    policies: Path, tmp_path: Path
) -> None:
    pem = tmp_path / "key.pem"
    pem.write_text("no key")
    done = command("policy", "sign", str(pem), str(policies))
    assert done.returncode == 2 and "openssl genpkey" in done.stderr
    (policies / "executor-main.toml").write_text("id = 7")
    key = Ed25519PrivateKey.generate()
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    done = command("policy", "sign", str(pem), str(policies))
    assert done.returncode == 1 and "policy lint" in done.stderr
    assert not (policies / signature.FILE).exists()
