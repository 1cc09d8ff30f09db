# Sourced by `run --setup`: Debian's packages, unpacked under $home. Nothing is installed on the machine.
# shellcheck shell=bash

home=${home:?}
# Where to look for the kernel, in this order; trixie has busybox-static, but no kernel that knows the IOMMU.
kernel_suites=${KERNEL_SUITES:-trixie-backports sid}

# setup: everything `run` needs, as far as it is not there yet. To get newer versions remove $home.
setup() {
    # For apt_setup of .ci/bare-metal.sh.
    local cache=$home/download advice="(what to install by hand instead: run --help)"
    [[ ! -x $home/qemu/qemu-system-riscv64 || ! -f $home/linux/Image ]] || return 0
    command -v apt-get >/dev/null || die "--setup needs Debian's apt-get: what to install and set by hand says --help"
    rm -rf "$cache" "$home/unpack"
    [[ -x $home/qemu/qemu-system-riscv64 ]] || setup_tools
    [[ -f $home/linux/Image ]] || setup_linux
    rm -rf "$cache"
}

# setup_tools: QEMU 11.1 and three small tools, with all that they link to, run from where they are unpacked.
setup_tools() {
    local tool
    echo "== QEMU, dtc, cpio, xz (40 MB)"
    patiently apt_lists trixie trixie-backports || die "no package lists of Debian's trixie: see why above, mend it $advice"
    # As for an empty machine, so that all they depend on comes along.
    quiet download-tools "${apt_get[@]}" install --yes --download-only --no-install-recommends \
        --target-release trixie-backports qemu-system-riscv opensbi device-tree-compiler cpio xz-utils
    unpack
    mkdir "$home/unpack/qemu"
    mv "$home/unpack/root" "$home/unpack/qemu/root"
    for tool in qemu-system-riscv64 dtc cpio xz; do
        wrapper "$tool" >"$home/unpack/qemu/$tool"
        chmod +x "$home/unpack/qemu/$tool"
    done
    complete qemu
}

# wrapper TOOL: a script that starts it with the loader and the libraries it was built for.
wrapper() {
    local loader libraries options=
    loader=$(cd "$home/unpack/qemu/root" && compgen -G 'usr/lib*/ld-linux-*.so.*')
    libraries=$(cd "$home/unpack/qemu/root" && compgen -G 'usr/lib/*-linux-gnu*/libc.so.6')
    # shellcheck disable=SC2016  # the script's own variables
    [[ $1 != qemu-* ]] || options=' -L "$root/usr/share/qemu"'
    printf '%s\n' '#!/bin/sh' "root=\$(dirname \"\$(realpath \"\$0\")\")/root" \
        "exec \"\$root/$loader\" --library-path \"\$root/${libraries%/*}\" \"\$root/usr/bin/$1\"$options \"\$@\""
}

# setup_linux: Debian's newest kernel for riscv64 with its modules, and busybox for the initramfs.
setup_linux() {
    local apt_architecture=riscv64 suite package='' packages version image config
    echo "== Linux for riscv64 (130 MB)"
    for suite in $kernel_suites; do
        # Backports have no busybox, and need trixie for it; sid has one, and does without trixie where that fails.
        if apt_lists "$suite" trixie || apt_lists "$suite"; then
            package=$("${apt_cache[@]}" pkgnames linux-image- |
                grep -E '^linux-image-[0-9].*-riscv64$' | sort -V | tail -n 1) &&
                "${apt_cache[@]}" show busybox-static >/dev/null 2>&1 && break
            package=''
        fi
        echo "   no kernel and busybox in Debian's $suite, for the reason above" >&2
    done
    version=${package#linux-image-}
    [[ $version ]] || die "no kernel in Debian's $kernel_suites: mend it, or name other suites in KERNEL_SUITES"
    # Debian has begun to split a kernel into linux-image, -base, -binary and -modules, all with the version in the name.
    mapfile -t packages < <("${apt_cache[@]}" depends "$package" | awk -v end="-$version" '
        $1 == "Depends:" && substr($2, length($2) - length(end) + 1) == end { print $2 }')
    (cd "$cache/apt/archives" &&
        quiet download-linux "${apt_get[@]}" download "$package" "${packages[@]}" busybox-static)
    unpack
    image=$(find "$home/unpack/root" -name 'vmlinu[xz]*' -size +1M -print -quit)
    config=$(find "$home/unpack/root" \( -path "*/modules/$version/config" -o -path '*/boot/config-*' \) -print -quit)
    grep -qsx CONFIG_RISCV_IOMMU=y "$config" ||
        die "Linux $version of Debian's $suite has no driver for the IOMMU: name other suites in KERNEL_SUITES"
    mkdir -p "$home/unpack/linux/lib"
    image=$(raw_image "$image" "$home/unpack/Image")
    mv "$image" "$home/unpack/linux/Image"
    mv "$home/unpack/root/usr/lib/modules" "$home/unpack/linux/lib/"
    mv "$(find "$home/unpack/root" -path '*/bin/busybox')" "$home/unpack/linux/busybox"
    complete linux
    echo "   Linux $version of Debian's $suite"
}

# unpack: the downloaded packages to $home/unpack/root.
unpack() {
    local package
    mkdir -p "$home/unpack/root"
    for package in "$cache"/apt/archives/*.deb; do
        # Without the owners and set-user-ID bits that these files would have in a system.
        dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner --no-same-permissions -C "$home/unpack/root"
        rm "$package"
    done
}

# complete NAME: puts $home/unpack/NAME in its place. An interrupted setup leaves no half of it there.
complete() {
    rm -rf "${home:?}/$1"
    mv "$home/unpack/$1" "$home/$1"
    rm -rf "$home/unpack"
}
