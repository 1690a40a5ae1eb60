#!/bin/sh
# Resolves packaging/locks/*.in to hash-pinned locks. No index address is written: the machine's own
# pip configuration decides where packages come from, the hashes decide what they are.
set -eu
cd "$(dirname "$0")/locks"
compiler=../../.venv/bin/pip-compile
[ -x "$compiler" ] || { echo "lock: $compiler is missing; run: make setup" >&2; exit 1; }
new=$(mktemp)
trap 'rm -f "$new"' EXIT
for name in runtime dev clients bench; do
    "$compiler" --quiet --rebuild --generate-hashes --strip-extras --no-header \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
        --output-file - "$name.in" >"$new"
    # What follows the first empty line is advice about pip and setuptools, which are not pinned:
    # they come with Debian's python3-venv.
    { echo "# Written by \"make locks\" from $name.in; do not edit."; sed '/^$/,$d' "$new"; } >"$name.txt"
    echo "lock: $name.txt ($(grep -c '==' "$name.txt") packages)"
done
