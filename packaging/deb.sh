#!/bin/sh
# Builds dist/SUITE/*.deb from the files of the tree that git knows, as they stand.
#
#     SUITE=trixie packaging/deb.sh      (bookworm without SUITE)
#
# The machine's own suite is built right here, by anyone; another one in a fresh root of that suite, by
# root. The wheels are fetched first, by hash; the build itself runs without a network. The same files
# give the same packages, bit by bit, whatever the folder, umask, time zone or language.
set -eu
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C.UTF-8 TZ=UTC
cd "$(dirname "$0")/.."

suite=${SUITE:-bookworm}
cache=${ANCHORHOLD_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/anchorhold}
sources="LICENSE README.md SECURITY.md assistant docs packaging policies probes proxy sandbox supervisor"

say() { printf 'deb: %s\n' "$*"; }

fail() {
    printf 'deb: FAILED: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf 'deb:   %s\n' "$line" >&2; done
    exit 1
}

# --- what goes in ------------------------------------------------------------------------------------

# A tar stream of the files that git knows below `sources`, as they stand now. Owner, time and the
# rights that a umask decides are the same for everyone.
pack() {
    # shellcheck disable=SC2086  # names are words
    git ls-files -z -- $sources | perl -0lne 'print if -e or -l' |
        tar -c --null --no-recursion --files-from=- --format=gnu --numeric-owner --owner=0 --group=0 \
            --mode=u=rwX,go=rX --mtime="@$(dpkg-parsechangelog -l packaging/debian/changelog -S Timestamp)"
}

left_out() {
    # shellcheck disable=SC2086
    git ls-files --others --exclude-standard -- $sources | sed 's/^/deb: not packed, git does not know it: /'
}

unchanged() {
    [ "$(cat "dist/$suite/input" 2>/dev/null)" = "$1" ] &&
        (cd "dist/$suite" && sha256sum --quiet --check SHA256SUMS >/dev/null 2>&1)
}

# --- where it is built ---------------------------------------------------------------------------------

# field NAME [ROOT]: what an os-release file says.
field() { sed -n "s/^$1=//p" "${2:-}/etc/os-release" | tr -d '"'; }

# Where this machine's apt gets its own suite from, as sources for the wanted one.
apt_sources() {
    # shellcheck disable=SC2016  # for apt to expand
    apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
        sed -nE "s/ $own_suite(-updates|-security)? main\$/ $suite\1 main/p" | sort -u
}

# A tar file of a root of the suite with what the build needs; made once, named by its content.
other_root() {
    [ "$(id -u)" -eq 0 ] || fail "building for $suite on $own_suite makes a root of that suite" "Run as root."
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing" "apt-get install mmdebstrap"
    wanted=$(sed -n 's/^Build-Depends: *//p' packaging/debian/control | sed 's/([^)]*)//g; s/:any//g; s/ //g')
    wanted=$(echo "$wanted" | sed 's/debhelper-compat/debhelper/'),build-essential
    lines=$(apt_sources)
    [ -n "$lines" ] || fail "apt knows no archive of $own_suite" "Check /etc/apt/sources.list*, then: apt-get update"
    root_tar=$cache/buildroots/$suite-$(printf '%s\n' "$suite" "$wanted" "$lines" | sha256sum | cut -c1-16).tar
    [ ! -e "$root_tar" ] || return 0
    say "a root of $suite: making it ..."
    mkdir -p "$cache/buildroots"
    printf '%s\n' "$lines" | mmdebstrap --quiet --variant=minbase --include="$wanted" \
        --aptopt='APT::Install-Recommends "0"' --aptopt='Acquire::Languages "none"' \
        "$suite" "$work/root.tar" - || fail "mmdebstrap could not make a root of $suite" \
        "Check the network, and that /usr/share/keyrings has the key of $suite (debian-archive-keyring)."
    rm -f "$cache/buildroots/$suite-"*.tar # of other mirrors or packages: half a gigabyte each
    mv "$work/root.tar" "$root_tar.new"
    mv "$root_tar.new" "$root_tar"
}

# Runs a command with nothing of the caller's environment and without a network, in the other root
# if there is one. Whoever is not root needs a user namespace for a network namespace without links.
offline() {
    as=
    [ "$(id -u)" -eq 0 ] || as=--map-current-user
    # shellcheck disable=SC2086
    unshare $as --net ${root:+--pid --fork --mount-proc="$root/proc"} \
        env -i PATH="$PATH" HOME=/nonexistent LC_ALL=C.UTF-8 TZ=UTC ${root:+chroot "$root"} "$@"
}

# --- wheels --------------------------------------------------------------------------------------------

# The pinned wheels for the interpreter of the suite, whose version and C library it says itself.
fetch_wheels() {
    # shellcheck disable=SC2016
    tags=$(offline /usr/bin/python3 -Ic 'if True:
        import os, sys
        major, minor = map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))
        print("--python-version %d.%d" % sys.version_info[:2])
        for each in range(minor, 4, -1):
            print(f"--platform manylinux_{major}_{each}_x86_64")
        print("--platform manylinux2014_x86_64 --platform manylinux2010_x86_64")') ||
        fail "no interpreter ran without a network" "Is unshare allowed here? Try: unshare --net true"
    wheels=$cache/wheels/$({ echo "$tags"; cat packaging/locks/runtime.txt; } | sha256sum | cut -c1-16)
    [ ! -d "$wheels" ] || return 0
    say "wheels: fetching $(grep -c '==' packaging/locks/runtime.txt) for $suite ..."
    # shellcheck disable=SC2086
    /usr/bin/python3 -I -m pip --quiet --no-input --disable-pip-version-check download \
        --require-hashes --no-deps --only-binary :all: --implementation cp $tags \
        --dest "$work/wheels" -r packaging/locks/runtime.txt >"$log" 2>&1 || {
        tail -n 5 "$log" | sed 's/^/deb:   | /' >&2
        fail "pip could not fetch the pinned wheels for $suite" \
            "No network? pip uses this machine's own configuration (pip config list)." \
            "A hash that differs means that the file is not the one that was reviewed: do not work round it."
    }
    mkdir -p "$cache/wheels"
    mv -T "$work/wheels" "$wheels.$$"
    mv -T "$wheels.$$" "$wheels" 2>/dev/null || rm -rf "$wheels.$$" # another run was faster
}

# --- in order --------------------------------------------------------------------------------------------

case $suite in *[!a-z]*) fail "SUITE=$suite is no name of a Debian release" ;; esac
for tool in git perl unshare dpkg-parsechangelog dpkg-buildpackage; do
    command -v "$tool" >/dev/null || fail "$tool is missing" \
        "Install what packaging/debian-packages.txt lists under \"To build packages\"."
done
git ls-files --error-unmatch packaging/deb.sh >/dev/null 2>&1 ||
    fail "this is no git clone of the project, or git refuses to read it" \
        "git says what belongs to the tree; see: git status"
own_suite=$(field VERSION_CODENAME)
mkdir -p dist
exec 9>dist/.lock
flock --nonblock 9 || {
    say "waiting for another build in this tree"
    flock 9
}
left_out
input=$({ echo "$suite"; pack; } | sha256sum | cut -d' ' -f1)
if unchanged "$input"; then
    say "dist/$suite is up to date"
    exit 0
fi
began=$(date +%s)
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
log=$PWD/dist/$suite.log
root=
if [ "$suite" != "$own_suite" ]; then
    other_root
    root=$work/root
    mkdir "$root"
    tar -C "$root" -xf "$root_tar"
fi
fetch_wheels

# In the copy debian/ stands at the top, and the version says for which suite it was built.
if [ -n "$root" ]; then place=/build; else place=$work/build; fi
copy=$root$place/anchorhold
mkdir -p "$copy"
pack | tar -C "$copy" -x
mv "$copy/packaging/debian" "$copy/debian"
cp -R "$wheels" "$copy/debian/wheels"
number=$(field VERSION_ID "$root")
[ -z "$number" ] || sed -i "1s/)/~deb$number)/" "$copy/debian/changelog"

say "packages for $suite: building ..."
# shellcheck disable=SC2016
offline sh -euc 'cd "$1" && exec dpkg-buildpackage --build=binary --no-sign' sh "$place/anchorhold" \
    >"$log" 2>&1 || {
    tail -n 20 "$log" | sed 's/^/deb:   | /' >&2
    fail "dpkg-buildpackage did not work" \
        "Missing packages? packaging/debian-packages.txt lists them under \"To build packages\"." \
        "The whole output is in $log."
}

rm -rf "dist/$suite.new"
mkdir "dist/$suite.new"
mv "$root$place"/*.deb "dist/$suite.new/"
(cd "dist/$suite.new" && sha256sum -- *.deb >SHA256SUMS)
echo "$input" >"dist/$suite.new/input"
rm -rf "dist/$suite"
mv "dist/$suite.new" "dist/$suite"
say "dist/$suite in $(($(date +%s) - began)) s:"
sed 's/^/deb:   /' "dist/$suite/SHA256SUMS"
