# Sourced by the scripts of this folder: starts them in the root of the crate and gives them a few words.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_COLOR=never
logs=$PWD/target/ci-logs
mkdir -p "$logs"

# die MESSAGE: what is wrong and what to do, in one line.
die() {
    printf '%s: %s\n' ".ci/${0##*/}" "$*" >&2
    exit 1
}

# quiet NAME COMMAND...: shows what the command printed only when it failed.
quiet() {
    local log=$logs/$1.log
    shift
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 200 "$log" >&2
        die "failed: $* (above: the end of $log)"
    fi
}

# need COMMAND PACKAGE...: installs Debian packages where the command is missing.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null || debian_install "$@"
}

# debian_install PACKAGE...: installs on Debian as root, and tells everyone else to.
debian_install() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        die "missing: $* (a Debian package name): install it and run again"
    fi
    quiet apt-update apt-get update
    quiet "apt-install-$1" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "$@"
}

# nightly: prints the toolchain libFuzzer needs.
nightly() {
    local toolchain=${FUZZ_TOOLCHAIN:-nightly}
    rustup run "$toolchain" cargo --version >/dev/null 2>&1 ||
        die "libFuzzer needs a nightly compiler, by rustup: rustup toolchain install $toolchain --profile minimal"
    echo "$toolchain"
}
