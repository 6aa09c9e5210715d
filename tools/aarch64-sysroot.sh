#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpacks the arm64 libraries that dcmem links into a directory, with apt's own sources and without
# root: nothing of the host changes, no foreign architecture is added to its dpkg.
# usage: aarch64-sysroot.sh DIRECTORY
set -eu
[ $# -eq 1 ] || { echo "usage: aarch64-sysroot.sh DIRECTORY" >&2; exit 2; }
packages="libc6-dev libgcc-12-dev libstdc++-12-dev libzstd-dev liburing-dev libnuma-dev
	libjansson-dev libxxhash-dev libsystemd-dev libcmocka-dev"
mkdir -p "$1"
root=$(cd "$1" && pwd)
state=$root.apt
trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/archives/partial"
: >"$state/status"

# An apt that knows arm64 alone and believes that nothing is installed.
arm64_apt() {
	apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
		-o Dir::State="$state" -o Dir::State::lists="$state/lists" \
		-o Dir::State::status="$state/status" -o Dir::Cache="$state" \
		-o Dir::Cache::archives="$state/archives" -o Dir::Etc::sourceparts="$sourceparts" \
		-o Dir::Etc::sourcelist="$sourcelist" -o APT::Sandbox::User=root \
		-o APT::Install-Recommends=false -o Debug::NoLocking=true \
		-o Binary::apt-get::APT::Keep-Downloaded-Packages=true "$@"
}

# Debian's own sources alone: others may have no arm64.
sourcelist=$state/sources.list
sourceparts=$state/sources.list.d
mkdir "$sourceparts"
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
	[ ! -f "$list" ] || sed -n -E 's/arch=[a-z0-9,]+ ?//; /^deb .*debian/p' "$list" >>"$sourcelist"
done
for list in /etc/apt/sources.list.d/debian*.sources; do
	[ ! -f "$list" ] || sed '/^Architectures:/d' "$list" >"$sourceparts/${list##*/}"
done
arm64_apt update
# shellcheck disable=SC2086
arm64_apt install --download-only -y $packages

# /lib is in /usr, as on an installed Debian 12; a package may still say /lib.
rm -rf "$root"
mkdir -p "$root/usr/lib"
ln -s usr/lib "$root/lib"
for deb in "$state"/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
		--exclude='./usr/share/*' --exclude='./usr/bin/*' --exclude='./usr/sbin/*' \
		--exclude='./etc/*' --exclude='./var/*'
done
[ -e "$root/lib/ld-linux-aarch64.so.1" ] && [ -e "$root/usr/include/zstd.h" ]
