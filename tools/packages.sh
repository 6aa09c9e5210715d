# SPDX-License-Identifier: Apache-2.0
# Sourced by ./quickstart and ./run-tests: installs Debian packages that are missing.

packages_install() {
	local missing="" sudo=""
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
			echo "  apt-get install --no-install-recommends$missing" >&2
			exit 1
		fi
	fi
	echo "Installing Debian packages:$missing"
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq
	# shellcheck disable=SC2086
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		$missing >/dev/null
}
