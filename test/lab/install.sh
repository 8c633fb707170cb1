#!/bin/sh
# Makes a Debian or Ubuntu machine ready for the laboratory: the packages, and this project's node modules. Says a line
# for each thing it does, and nothing when all is there.
set -eu

packages='qemu-system-x86 qemu-utils qemu-block-extra libvirt-daemon-system libvirt-clients iproute2 nbdkit libnbd-bin busybox-static
cpio kmod xz-utils gcc libc6-dev util-linux openssl tgt ceph-mon ceph-osd ceph-common debootstrap systemd-container dpkg-dev debhelper
lintian rpm apparmor'

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

distribution() (
  ID= ID_LIKE=
  [ ! -r /etc/os-release ] || . /etc/os-release
  case " $ID $ID_LIKE " in
  *' ubuntu '*) echo ubuntu ;;
  *' debian '*) echo debian ;;
  *) echo "${ID:-unknown}" ;;
  esac
)

# The guests' kernel; its modules are read from /lib/modules.
case $(distribution) in
debian) packages="$packages linux-image-cloud-amd64" ;;
ubuntu) packages="$packages linux-image-virtual" ;;
*)
  fail "this is not Debian or Ubuntu ($(distribution)). Install by hand: QEMU for x86 with qemu-img and the NBD block" \
    "driver, libvirt's daemon and virsh, nbdkit and libnbd's tools, a static busybox, a kernel with virtio modules" \
    "in /boot, tgt, Ceph's ceph-mon, ceph-osd and ceph-common, cpio, kmod, xz, gcc with a static C library, util-linux, openssl; then run npm ci."
  ;;
esac

missing=
for package in $packages; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=
  [ "$state" = installed ] || missing="$missing $package"
done

if [ "$missing" ]; then
  [ "$(id -u)" = 0 ] || fail "must be root to install$missing"
  [ "$(dpkg --print-architecture)" = amd64 ] || fail "the laboratory's guests are x86-64: it needs an amd64 machine"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # Where no init runs, RUNLEVEL tells invoke-rc.d that this is no time to start daemons.
  [ -d /run/systemd/system ] || export RUNLEVEL=1
  export DEBIAN_FRONTEND=noninteractive
  quietly() { "$@" </dev/null >"$log" 2>&1 || { cat "$log" >&2; fail "failed: $*"; }; }
  echo "installing$missing"
  quietly apt-get -q update
  # shellcheck disable=SC2086 # a list of words
  quietly apt-get -q -y --no-install-recommends install $missing
fi

cd "$(dirname "$0")/../.."
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  command -v npm >/dev/null || fail 'npm is missing: install Node.js 20.19 or later with npm'
  echo 'installing node modules'
  npm ci --silent --no-audit --no-fund
fi
