# SPDX-License-Identifier: Apache-2.0
# Sourced by ./quickstart and ./run-tests: which Debian packages they need, and installing those
# that are missing. docs/dependencies.md says why each.

packages_build="meson ninja-build pkg-config libzstd-dev liburing-dev libnuma-dev libjansson-dev
	libxxhash-dev libsystemd-dev python3"
packages_test="g++ libcmocka-dev python3-numpy socat"
# Peers of `dcmem bench codec`; left out where they are missing.
packages_peers="liblz4-dev libhtscodecs-dev"
# For ./run-tests --aarch64 alone.
packages_aarch64="gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"

packages_install() {
	local missing="" sudo=""
	command -v dpkg-query >/dev/null || return 0 # not Debian: meson says what it misses
	for package in "$@"; do
		dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	if [ "$(id -u)" -ne 0 ]; then
		if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
			sudo="sudo"
		else
			echo "These Debian packages are missing; install them, then run this again:" >&2
			echo "  sudo apt-get install --no-install-recommends$missing" >&2
			exit 1
		fi
	fi
	echo "Installing Debian packages:$missing"
	packages_log=$(mktemp)
	# Old lists may do where there is no network.
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq >"$packages_log" 2>&1 || true
	# shellcheck disable=SC2086
	if ! $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends $missing >>"$packages_log" 2>&1; then
		tail -n 20 "$packages_log" >&2
		rm -f "$packages_log"
		echo "These Debian packages could not be installed:$missing" >&2
		exit 1
	fi
	rm -f "$packages_log"
}
