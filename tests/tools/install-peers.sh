#!/bin/sh
# Install the programs that the tests run beside vdisk, where they are missing and that is
# possible: on Debian and its kin, as root. Elsewhere, say what to install and go on.
set -eu

PATH="$PATH:/usr/sbin:/sbin"

# command, or file, and the Debian package that has it
peers='
qemu-img    qemu-utils
qemu-io     qemu-utils
qemu-nbd    qemu-utils
nbdkit      nbdkit
nbdinfo     libnbd-bin
nbdcopy     libnbd-bin
nbddump     libnbd-bin
file        file
nbdsh       python3-libnbd
nbd-client  nbd-client
fio         fio
mke2fs      e2fsprogs
ip          iproute2
unshare     util-linux
cryptsetup  cryptsetup-bin
chromium    chromium
vncsnapshot vncsnapshot
vncviewer   tigervnc-viewer
Xvfb        xvfb
xwd         x11-apps
xdotool     xdotool
iasl        acpica-tools
nasm        nasm
qemu-system-x86_64 qemu-system-x86
debootstrap debootstrap
syslinux    syslinux syslinux-common
/usr/lib/ISOLINUX/isolinux.bin isolinux
mformat     mtools
xorriso     xorriso
grub-mkrescue grub-common
/usr/lib/grub/i386-pc grub-pc-bin
/boot/memtest86+x64.bin memtest86+
/usr/share/seabios/bios.bin seabios
/usr/share/ovmf/OVMF.fd ovmf
/usr/lib/u-boot/qemu-x86_64/u-boot.rom u-boot-qemu
/usr/share/qemu/grub.bin grub-firmware-qemu
'

missing=$(echo "$peers" | while read -r command package; do
    [ -z "$command" ] || [ -e "$command" ] || command -v "$command" >/dev/null || echo "$package"
done | sort -u)
[ -n "$missing" ] || exit 0
missing=$(echo $missing) # on one line

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed here: $missing"
    echo "Tests that need them are skipped. To run those too: sudo apt-get install $missing"
    exit 0
fi

echo "Installing $missing"
export DEBIAN_FRONTEND=noninteractive
for attempt in 1 2 3; do
    if apt-get -qq -o Acquire::Retries=3 update &&
        apt-get -qq -o Acquire::Retries=3 install -y --no-install-recommends $missing >/dev/null
    then
        exit 0
    fi
    echo "apt-get failed (attempt $attempt of 3)" >&2
    sleep 5
done
exit 1
