# Sourced after common.sh: cargo for targets without an operating system.
# rustup's own build of `core` is used where it is installed. Where it is not, `core` is built from
# Debian's rust-src package of the compiler's version, so that neither rustup nor the toolchain's
# folder has to change: cargo finds the source through a second sysroot of symbolic links.
# shellcheck shell=bash

cache=$PWD/target/ci-cache
logs=${logs:?}
# Where to look for rust-src, in this order; backports keep several versions of the compiler.
rust_src_suites=${RUST_SRC_SUITES:-trixie-backports sid}
advice="or let rustup do it: rustup target add riscv64gc-unknown-none-elf riscv32imc-unknown-none-elf"
bare_metal_target=
bare_metal_env=()
bare_metal_flags=()

# bare_metal_setup TARGET: to be called before bare_metal_cargo.
bare_metal_setup() {
    bare_metal_target=$1
    # A folder for each script: cargo names the source of `core` relative to the workspace, and
    # would build it anew whenever another workspace shared the folder.
    bare_metal_env=(CARGO_TARGET_DIR="$PWD/target/ci-bare-metal/${0##*/}")
    bare_metal_flags=(--target "$1")
    if compgen -G "$(rustc --print target-libdir --target "$1")/libcore-*.rlib" >/dev/null; then
        return
    fi
    second_sysroot
    # The stable compiler takes -Z flags, and builds `core`, only under RUSTC_BOOTSTRAP.
    bare_metal_env+=(RUSTC="$sysroot/rustc" RUSTC_BOOTSTRAP=1)
    # `core` alone: a dependency that wants `alloc` or `std` finds none.
    bare_metal_flags+=(-Zbuild-std=core)
}

# bare_metal_cargo NAME COMMAND ARGUMENTS...: a quiet cargo command for the target.
bare_metal_cargo() {
    local name=$1 command=$2
    shift 2
    quiet "$name-$bare_metal_target" env "${bare_metal_env[@]}" \
        cargo "$command" "${bare_metal_flags[@]}" "$@"
}

# Sets `sysroot` to a folder that links to the toolchain and adds the source of the library.
second_sysroot() {
    local real release entry src
    real=$(rustc --print sysroot)
    release=$(rustc -vV | sed -n 's/^release: //p')
    sysroot=$cache/sysroot-$release
    src=$sysroot/lib/rustlib/src/rust
    mkdir -p "$src"
    # A link made anew would look to cargo like a changed compiler.
    for entry in "$real"/lib/rustlib/*; do
        [[ ${entry##*/} == src || $entry -ef $sysroot/lib/rustlib/${entry##*/} ]] ||
            ln -sfn "$entry" "$sysroot/lib/rustlib/${entry##*/}"
    done
    if [[ -f $real/lib/rustlib/src/rust/library/core/Cargo.toml ]]; then
        ln -sfn "$real/lib/rustlib/src/rust/library" "$src/library"
    elif [[ ! -f $src/library/core/Cargo.toml ]]; then
        rust_src "$release" "$src"
    fi
    # Written once: cargo would ask the compiler everything anew after each change of this file.
    if [[ ! -x $sysroot/rustc ]]; then
        printf '#!/bin/sh\nexec "%s" --sysroot "%s" "$@"\n' "$real/bin/rustc" "$sysroot" >"$sysroot/rustc"
        chmod +x "$sysroot/rustc"
    fi
}

# rust_src RELEASE FOLDER: puts Debian's source of the library at FOLDER/library.
rust_src() {
    local release=$1 folder=$2 suite
    command -v apt-get >/dev/null ||
        die "no 'core' for $bare_metal_target, no apt-get to get its source: rustup target add $bare_metal_target"
    for suite in $rust_src_suites; do
        if rust_src_from "$suite" "$release"; then
            # Unpacked beside its place and then renamed: an interrupted run leaves no half library.
            rm -rf "$cache/unpack" "$folder/library"
            mkdir -p "$cache/unpack"
            dpkg-deb --fsys-tarfile "$cache/rust-src-$release.deb" |
                tar -x -C "$cache/unpack" "./usr/src/rustc-$release/library" ||
                die "$cache/rust-src-$release.deb is damaged: remove it and run again"
            mv "$cache/unpack/usr/src/rustc-$release/library" "$folder/library"
            rm -rf "$cache/unpack"
            return
        fi
    done
    die "no rust-src $release in Debian's $rust_src_suites: name other suites in RUST_SRC_SUITES $advice"
}

# rust_src_from SUITE RELEASE: downloads the package to the cache; false where the suite has no such version.
rust_src_from() {
    local suite=$1 release=$2 version
    [[ -f $cache/rust-src-$release.deb ]] && return
    patiently apt_lists "$suite" || die "no package list of Debian's $suite: see why above, mend it $advice"
    version=$("${apt_cache[@]}" madison rust-src | awk -v release="$release" '
        !found && (index($3, release "+") == 1 || index($3, release "-") == 1) { print $3; found = 1 }')
    [[ -n $version ]] || return 1
    rm -f "$cache"/rust-src_*.deb
    (cd "$cache" && "${apt_get[@]}" download "rust-src=$version") >"$logs/rust-src.log" 2>&1 || {
        tail -n 20 "$logs/rust-src.log" >&2
        die "rust-src $version did not download from Debian's $suite: see why above, mend it $advice"
    }
    mv "$cache"/rust-src_*.deb "$cache/rust-src-$release.deb"
}

# apt_lists SUITE...: apt_setup with fresh package lists; false where there are none, and why was printed.
apt_lists() {
    local log="$logs/apt-$1.log"
    apt_setup "$@"
    "${apt_get[@]}" update >"$log" 2>&1 && return
    # Signatures are checked with the machine's keyring, which may be older than the suite.
    if grep -q NO_PUBKEY "$log" && [[ $(id -u) == 0 ]]; then
        debian_install debian-archive-keyring
        "${apt_get[@]}" update >"$log" 2>&1 && return
    fi
    grep '^[EW]: ' "$log" >&2
    return 1
}

# patiently COMMAND...: tries again for some minutes: a mirror that is being updated has lists that do not fit each other.
patiently() {
    local try
    for try in {1..5}; do
        "$@" && return
        ((try == 5)) || sleep 60
    done
    return 1
}

# apt_setup SUITE...: sets apt_get and apt_cache to ones that know these suites alone, for another machine
# where apt_architecture names one, and leave the machine's lists be.
apt_setup() {
    local suite codename mirror keyring options
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -f $keyring ]] || debian_install debian-archive-keyring
    # The mirror is the one this machine takes its own release from.
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016  # apt's own variables
    mirror=$(apt-get indextargets --no-release-info --format '$(REPO_URI)' \
        "Release: $codename" 'Created-By: Packages' | head -n 1)
    [[ -n $mirror ]] ||
        die "apt has no source for '$codename', so no Debian mirror is known: add one to apt's sources $advice"
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
    for suite; do
        printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite"
    done >"$cache/apt/$1.list"
    : >"$cache/apt/status"
    options=(
        -o "Dir::Etc::sourcelist=$cache/apt/$1.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State=$cache/apt" -o "Dir::State::lists=$cache/apt/lists"
        -o "Dir::State::status=$cache/apt/status" -o "Dir::Cache=$cache/apt"
        -o "APT::Sandbox::User=$(id -un)" -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Update::Error-Mode=any
        ${apt_architecture:+-o "APT::Architecture=$apt_architecture" -o "APT::Architectures=$apt_architecture"}
    )
    apt_get=(apt-get "${options[@]}")
    apt_cache=(apt-cache "${options[@]}")
}
