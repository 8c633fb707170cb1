#!/bin/sh
# Run by the packages once their files are in place, also at an upgrade.
set -eu

# Debian 12's profile of a domain does not read the folder with virt-cdp's part; by its local part it does.
profile=/etc/apparmor.d/abstractions/libvirt-qemu
local=/etc/apparmor.d/local/abstractions/libvirt-qemu
if [ -f "$local" ] && ! grep -q 'libvirt-qemu\.d' "$profile" "$local"; then
  echo 'include if exists <abstractions/libvirt-qemu.d> # virt-cdp' >>"$local"
fi

# libvirt looks for a first hook only when it starts or is told.
case $(virt-cdp --json install-hook) in
*'"libvirtMustBeTold":true'*)
  [ -d /run/systemd/system ] || exit 0
  for daemon in libvirtd virtqemud; do
    # The daemon alone: QEMU takes a SIGHUP for a request to end.
    if systemctl --quiet is-active $daemon.service; then systemctl kill --kill-who=main --signal=HUP $daemon.service; fi
  done
  ;;
esac
