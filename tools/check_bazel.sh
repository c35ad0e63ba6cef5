#!/bin/sh
# Says what to install where there is no Bazel that builds this workspace.
set -eu
advice="Install Bazel 4 (Debian 12: apt install bazel-bootstrap). The tests themselves
need no Bazel: make test"

if ! command -v bazel >/dev/null 2>&1; then
    printf '%s\n' "make: bazel was not found on PATH." "$advice" >&2
    exit 1
fi
version=$(bazel --version) || {
    printf '%s\n' "make: bazel does not run." "$advice" >&2
    exit 1
}
case ${version#bazel } in
4.* | no_version) ;; # Debian's build of 4.2.3 does not know its version
[0-3].*)
    printf '%s\n' "make: $version is too old." "$advice" >&2
    exit 1
    ;;
*) printf '%s\n' "make: $version is newer than the Bazel 4 that this workspace is tried with." >&2 ;;
esac
