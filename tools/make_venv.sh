#!/bin/sh
# Makes a virtualenv anew and installs a lock file into it.
# usage: tools/make_venv.sh PYTHON VENV LOCK
set -eu
python=$1
venv=$2
lock=$3

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

advice="Install one of Python 3.10 to 3.13 (Debian, Ubuntu: apt install python3 python3-venv;
Fedora: dnf install python3; macOS: brew install python@3.13), or name one that is installed:
make venv PYTHON=/path/to/python3"

command -v "$python" >/dev/null 2>&1 || fail "make: $python was not found." "$advice"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "make: $python does not run." "$advice"
case $version in
3.10 | 3.11 | 3.12 | 3.13) ;;
*) fail "make: $python is Python $version, and this project needs 3.10 to 3.13." "$advice" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "make: $python (Python $version) has no venv module." \
        "Install it (Debian, Ubuntu: apt install python3-venv, or python$version-venv)."

# The python3 of an activated virtualenv goes away with it, so use the interpreter it came from.
base=$("$python" -c 'import sys; print(sys._base_executable)')
printf 'Making %s with Python %s and installing %s into it: a few minutes.\n' \
    "$venv" "$version" "$lock"
# The stamps go first: a virtualenv that is half removed must not pass for a whole one.
rm -f "$venv"/.*-installed
rm -rf "$venv"
"$base" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 --requirement "$lock" ||
    fail "make: pip could not install $lock; it needs a package registry and 3 GB of disk."
