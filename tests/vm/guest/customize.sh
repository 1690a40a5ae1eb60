#!/bin/sh
# customize.sh ROOT: what a Debian root needs besides packages to be a guest of the rig.
set -eu
root=$1
here=$(dirname "$0")

cp -R --no-preserve=ownership "$here/root/." "$root/"
install -m 755 "$here/agent.py" "$root/usr/local/sbin/rig-agent"
echo rig >"$root/etc/hostname"
printf '127.0.0.1 localhost rig\n::1 localhost\n' >"$root/etc/hosts"
# Fixed, so that no boot is a first boot.
echo 0000000000000000000000000000c0de >"$root/etc/machine-id"
: >"$root/etc/fstab"
rm -f "$root/etc/resolv.conf"
: >"$root/etc/resolv.conf"

systemctl --quiet --root="$root" enable rig-agent.service systemd-networkd.service
systemctl --quiet --root="$root" set-default multi-user.target
# Timers and clean-ups would run in the middle of a test; the rest only lengthens the boot.
systemctl --quiet --root="$root" mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-timesyncd.service \
    getty@tty1.service serial-getty@ttyS0.service systemd-networkd-wait-online.service \
    systemd-firstboot.service systemd-machine-id-commit.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-pstore.service systemd-rfkill.socket \
    systemd-hwdb-update.service systemd-journal-catalog-update.service ldconfig.service \
    systemd-update-done.service modprobe@drm.service modprobe@efi_pstore.service
