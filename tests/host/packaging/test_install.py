"""Install, change, install again, remove, purge: what dpkg and we leave behind.

In a copy of this machine's own Debian: an overlay in a mount namespace that ends with the test.
There is no systemd in it; what units do is for the tier with a machine.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from built import Deb

Run = Callable[[str], "subprocess.CompletedProcess[str]"]

_ENTER = """
mount -t tmpfs -o size=1g tmpfs "$1" && cd "$1" && mkdir upper work root packages
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount -t proc proc root/proc && mount --rbind /dev root/dev && mount -t tmpfs tmpfs root/run
mkdir root/packages && shift && cp "$@" root/packages/
exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 sh
"""
_MODULES = "find /usr/lib/anchorhold/app -name '*.py'"


@pytest.fixture
def run(debs: dict[str, Deb], tmp_path: Path) -> Iterator[Run]:
    """Runs shell commands in the copy, one after the other, with a strict umask."""
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
    command += [
        "sh",
        "-euc",
        _ENTER,
        "sh",
        str(tmp_path),
        *(str(deb.path) for deb in debs.values()),
    ]
    shell = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert shell.stdin
    assert shell.stdout

    def say(line: str) -> subprocess.CompletedProcess[str]:
        assert shell.stdin
        assert shell.stdout
        shell.stdin.write(
            f"( umask 077\n{line}\n) 2>&1 </dev/null; status=$?; echo; echo ENDED $status\n"
        )
        shell.stdin.flush()
        said: list[str] = []
        for text in shell.stdout:
            if text.startswith("ENDED "):
                return subprocess.CompletedProcess(
                    line, int(text.split()[1]), "".join(said).strip()
                )
            said.append(text)
        raise AssertionError(f"the shell ended: {''.join(said)}")

    yield say
    shell.stdin.close()
    shell.wait(30)
    shell.stdout.close()


def ok(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that worked."""
    assert done.returncode == 0, f"{done.args}: {done.stdout}"
    return done.stdout


# Some machines have no headers of the kinds that are named; that is not what is tested here.
INSTALL = "dpkg --force-depends --install /packages/*.deb"


def test_after_installing_root_never_compiles(run: Run) -> None:
    ok(run(INSTALL))
    assert ok(run("anchorhold policy lint")).endswith("0 errors, 0 warnings")
    modules = ok(run(_MODULES)).splitlines()
    compiled = set(ok(run("find /usr/lib/anchorhold/app -name '*.pyc'")).splitlines())
    assert len(modules) > 150
    assert len(compiled) == len(modules)
    wrong = "find /usr/lib/anchorhold ! -type l \\( ! -user root -o -perm /7022 -o ! -perm -444 \\)"
    assert ok(run(wrong)) == ""
    ok(run("touch /tmp/now; for verb in status doctor keys; do anchorhold $verb --help; done"))
    assert ok(run("find /usr/lib/anchorhold -newer /tmp/now")) == ""


def test_installing_starts_and_enables_nothing(run: Run) -> None:
    ok(run(INSTALL))
    assert run("systemctl is-enabled anchorhold").stdout == "disabled"
    assert run("pgrep -f '[a]pp/supervisor'").returncode == 1
    assert ok(run("stat -c '%a %U' /var/lib/anchorhold")) == "700 root"
    assert ok(run("getent group tss")).startswith("tss:")


def test_again_keeps_what_the_administrator_changed(run: Run) -> None:
    ok(run(INSTALL))
    ok(run("echo '# mine' >>/etc/anchorhold/host.toml; echo sealed >/var/lib/anchorhold/vault"))
    ok(run(INSTALL))
    assert ok(run("tail -n 1 /etc/anchorhold/host.toml; cat /var/lib/anchorhold/vault")) == (
        "# mine\nsealed"
    )
    assert run(f"{_MODULES} -newer /var/lib/anchorhold/vault").stdout == ""
    ok(run("anchorhold policy lint"))


def test_removing_keeps_the_vault_and_purging_does_not(run: Run) -> None:
    before = ok(run("find / -xdev -name '*anchorhold*' ! -path '/packages/*' | sort"))
    ok(run(INSTALL))
    ok(run("echo sealed >/var/lib/anchorhold/vault; ln -s /etc/hostname /var/lib/anchorhold/link"))
    ok(run("dpkg --remove anchorhold anchorhold-runtime"))
    assert run("ls /usr/lib/anchorhold /usr/bin/anchorhold").returncode != 0
    assert ok(run("cat /var/lib/anchorhold/vault; ls /etc/anchorhold")) == "sealed\nhost.toml"
    ok(run(INSTALL))
    assert ok(run("cat /var/lib/anchorhold/vault")) == "sealed"
    ok(run("dpkg --purge anchorhold anchorhold-runtime"))
    assert run("ls /var/lib/anchorhold /etc/anchorhold /run/anchorhold").returncode != 0
    ok(run("test -s /etc/hostname"))
    after = ok(run("find / -xdev -name '*anchorhold*' ! -path '/packages/*' | sort"))
    assert after == before


def test_apt_calls_the_hook_and_goes_on_whatever_it_says(run: Run) -> None:
    # Two files of it only: apt wants every dependency of what is installed, and has no network.
    ok(run("for deb in /packages/anchorhold_*.deb; do dpkg-deb --extract $deb /unpacked; done"))
    for name in ("/usr/lib/anchorhold/after-update", "/etc/apt/apt.conf.d/60anchorhold"):
        ok(run(f"install -D --mode 755 /unpacked{name} {name}"))
    program = 'echo "$*" >>/called; echo "anchorhold: not predicted: PCR 7" >&2; exit 1'
    ok(run(f"printf '#!/bin/sh\\n%s\\n' '{program}' >/usr/bin/anchorhold"))
    ok(run("chmod 755 /usr/bin/anchorhold"))
    control = (
        "Package: some-kernel\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@y.invalid>\\n"
    )
    ok(run(f"mkdir -p /d/DEBIAN && printf '{control}Description: x\\n' >/d/DEBIAN/control"))
    ok(run("chmod 755 /d /d/DEBIAN && dpkg-deb --build /d /d.deb && chmod 644 /d.deb"))
    said = ok(run("apt-get --yes install /d.deb"))
    assert "not predicted: PCR 7" in said and "recovery code" in said
    assert ok(run("cat /called")) == "keys approve --predict"
    assert "install ok installed" in ok(
        run("dpkg-query --show --showformat '${Status}' some-kernel")
    )
    # Of a package that was removed the hook stays, as all of /etc does, and does nothing.
    ok(run("rm /usr/lib/anchorhold/after-update"))
    assert "PCR 7" not in ok(run("apt-get --yes remove some-kernel"))
