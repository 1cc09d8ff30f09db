# Sourced by `run`: what QEMU loads into the guests' memory, and their disks.
# shellcheck shell=bash

images=${images:?}
# Where the hypervisor expects the images in a guest's memory.
tree_at=0x00100000
kernel_at=0x00200000
initramfs_at=0x0c000000
guest_ram_base=0x80000000

# raw_image FILE OUT: names a kernel that can be entered at its first byte: FILE itself, or OUT if FILE is gzipped.
raw_image() {
    local raw=$1
    if [[ $(od -An -tx1 -N2 "$1") == " 1f 8b" ]]; then
        raw=$2
        gzip -dc "$1" >"$raw"
    fi
    # The magic number of RISC-V's Image format.
    [[ $(od -An -tx1 -j56 -N4 "$raw") == " 52 53 43 05" ]] ||
        die "$1 is neither a raw RISC-V Image nor a gzipped one: use arch/riscv/boot/Image of a built Linux"
    echo "$raw"
}

# kernel_version IMAGE
kernel_version() {
    grep -aom1 'Linux version [0-9][^ ]*' "$1" | sed -n '1s/.* //p'
}

# modules_of VERSION FOLDER: names the kernel's own modules: FOLDER, or what it holds of that version.
modules_of() {
    local candidate
    for candidate in "$2"/{usr/,}lib/modules/"$1" "$2/$1" "$2"; do
        if [[ ${candidate##*/} == "$1" && -d $candidate/kernel ]]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# add_module NAME TREE: appends the module, after those it depends on, to the initramfs in the folder TREE.
add_module() {
    local name=${1//-/_} file dependency
    ! grep -qsx "$name" "$2/modules/order" || return 0
    file=$(find "$modules/kernel" -name "${1//[-_]/[-_]}.ko*" -print -quit)
    [[ $file ]] || die "no module $1 in $modules (MODULES=none if the kernel has nvme built in)"
    case $file in
        *.xz) xz -dc "$file" ;;
        *.zst) zstd -dqc "$file" ;;
        *.gz) gzip -dc "$file" ;;
        *) cat "$file" ;;
    esac >"$2/modules/$name.ko"
    for dependency in $(tr '\0' '\n' <"$2/modules/$name.ko" | sed -n 's/^depends=//p' | tr , ' '); do
        add_module "$dependency" "$2"
    done
    echo "$name" >>"$2/modules/order"
}

# initramfs OUT [MODULE]: linux/init, busybox and the module.
initramfs() {
    local tree=$images/initramfs
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,dev,proc,sys,run,modules}
    cp "$example/linux/init" "$tree/init"
    cp "$busybox" "$tree/bin/busybox"
    chmod 755 "$tree/init" "$tree/bin/busybox"
    : >"$tree/modules/order"
    [[ $# == 1 ]] || add_module "$2" "$tree"
    (cd "$tree" && find . | sort | cpio --quiet -o -H newc -R 0:0 | gzip) >"$1"
    rm -rf "$tree"
}

# known_content: 16 MiB in lines of 16 bytes that count up, so that a sector in the wrong place shows.
known_content() {
    seq -f '%015.0f' 1048576
}

# disk OUT: 64 MiB that begin with the known content.
disk() {
    known_content >"$1"
    truncate -s 64M "$1"
}

# check_disk FILE CONSOLE: what Linux says it read and, last, wrote is what is on the disk.
check_disk() {
    local mib=$((1 << 20)) written offset
    known_content | cmp -s -n $((16 * mib)) - "$1" || fail "the first 16 MiB of $1 have changed"
    written=$(sed -n 's/^linux| .* sha256 of the 4 MiB at 16 MiB: \([0-9a-f]*\).*/\1/p' "$2" | tail -n 1)
    [[ $(tail -c +$((16 * mib + 1)) "$1" | head -c $((4 * mib)) | sha256sum) == "$written  -" ]] ||
        fail "the 4 MiB at 16 MiB of $1 are not what Linux wrote"
    [[ $guest == dma-api ]] || return 0
    for offset in 24 28 32 36 40 44 48 52; do
        cmp -s -n $((4 * mib)) -i $((16 * mib)):$((offset * mib)) "$1" "$1" ||
            fail "the 4 MiB at $offset MiB of $1 are not what Linux wrote"
    done
}

# device_tree OUT RAM_SIZE BOOTARGS [INITRAMFS]
device_tree() {
    local initrd=
    if [[ $# == 4 ]]; then
        initrd=$((guest_ram_base + initramfs_at))
        initrd=$(printf 'linux,initrd-start = <0x0 0x%x>; linux,initrd-end = <0x0 0x%x>;' \
            "$initrd" $((initrd + $(stat -c %s "$4"))))
    fi
    sed -e "s|@RAM_SIZE@|$2|" -e "s|@BOOTARGS@|$3|" -e "s|@INITRD@|$initrd|" "$example/guest.dts.in" >"$1.dts"
    quiet dtc dtc -I dts -O dtb -o "$1" "$1.dts"
}

# load FILE ADDRESS: has QEMU put it into memory.
load() {
    machine+=(-device "loader,file=$1,addr=$2,force-raw=on")
}

# add_vm NAME RAM_BASE RAM_SIZE KERNEL BOOTARGS [INITRAMFS]: the next guest, with its disk.
add_vm() {
    local n=$vms files=$images/vm$vms
    vms=$((vms + 1))
    append+=" name$n=$1"
    device_tree "$files.dtb" "$3" "${@:5}"
    load "$files.dtb" $(($2 + tree_at))
    load "$4" $(($2 + kernel_at))
    [[ $# -lt 6 ]] || load "$6" $(($2 + initramfs_at))
    disk "$images/disk$n.img"
    machine+=(
        -drive "file=$images/disk$n.img,if=none,id=d$n,format=raw"
        -device "nvme,drive=d$n,serial=viommu$n,addr=$((n + 1))"
    )
}
