#!/usr/bin/env bash
# A real CPython 3.9, the oldest Python that the shim must run in: DEST/python becomes one.
# Taken from PATH or pyenv; else the packages of Debian 11, from this machine's own source of packages, are unpacked
# there; else uv fetches a build. Nothing is installed.
set -euo pipefail
destination=$(realpath -m "$1")

is_one() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 9) or sys.implementation.name != "cpython")' 2>/dev/null
}

unpack() {
    local files source scratch
    files=$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null)
    [ -n "$files" ] || return 1
    # the first source of Debian's own suites, whichever of the two forms its line has
    source=$(awk '
        $1 == "URIs:" { uri = $2 }
        $1 == "Suites:" && $2 ~ /^(bookworm|trixie|forky|bullseye)$/ && uri { print uri; exit }
        $1 == "deb" { sub(/\[[^]]*\] */, ""); if ($3 ~ /^(bookworm|trixie|forky|bullseye)$/) { print $2; exit } }
    ' $files </dev/null)
    [ -n "$source" ] || return 1
    scratch=$(mktemp -d)
    chmod 755 "$scratch"
    mkdir -p "$scratch/lists/partial" "$scratch/packages"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $source bullseye main" >"$scratch/source"
    local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$scratch/source" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$scratch/lists" -o APT::Sandbox::User=root)
    (cd "$scratch/packages" && "${apt[@]}" update && "${apt[@]}" download python3.9-minimal libpython3.9-minimal \
        libpython3.9-stdlib libssl1.1 libffi7) || { rm -rf "$scratch"; return 1; }
    for package in "$scratch"/packages/*.deb; do dpkg -x "$package" "$destination"; done
    rm -rf "$scratch"
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s/usr/bin/python3.9" "$@"\n' \
        "$(dirname "$(find "$destination/usr/lib" -name 'libffi.so.7' | head -n 1)")" "$destination" >"$destination/python"
    chmod 755 "$destination/python"
}

# where Debian 11 cannot be had any more: a build of its own, which uv fetches
fetch() {
    local uv=.venv/bin/uv found
    [ -x "$uv" ] || uv=$(command -v uv) || return 1
    timeout 120 "$uv" python install --quiet --install-dir "$destination/builds" 3.9 </dev/null >/dev/null 2>&1 || return 1
    found=$(ls "$destination"/builds/*/bin/python3.9 2>/dev/null | head -n 1)
    [ -n "$found" ] && ln -s "$found" "$destination/python"
}

rm -rf "$destination"
mkdir -p "$destination"
for found in "$(command -v python3.9 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.9*/bin/python; do
    if [ -x "$found" ] && is_one "$found"; then
        ln -s "$("$found" -c 'import sys; print(sys.executable)')" "$destination/python"
        exit 0
    fi
done
if command -v dpkg >/dev/null && unpack && is_one "$destination/python"; then exit 0; fi
if fetch && is_one "$destination/python"; then exit 0; fi
rm -rf "$destination"
# whoever needs it decides: those tests skip on a laptop and fail in CI, all others run
echo "no Python 3.9 is here, and none can be had: the tests that run the shim in it will say so"
