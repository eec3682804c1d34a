#!/usr/bin/env bash
set -euo pipefail

work=$(mktemp -d)
exec 3< <(exec lxdtest -dir "$work/lxdtest" -dialect lxd50 -image web=debian/13 -with-parent)
daemon=$!
trap 'kill "$daemon" && wait "$daemon"; rm -r "$work"' EXIT
read -r <&3 # one line, when it serves; if it cannot, this fails

export LXD_CONF=$work/lxdtest/lxc # the remotes of lxc, and the default one: lxd50
control() {
	curl --silent --show-error --fail-with-body --unix-socket "$work/lxdtest/control.socket" "http://lxdtest/$1" "${@:2}"
}

# The program under test.
backup() {
	lxc image export "$1" "$2" || { rm -f "$2"*; return 1; }
}

control lxd50/inject --data '{"fault": "cut-response", "bytes": 1000, "path": "/1.0/images/*/export", "times": 1}'
if backup web "$work/first"; then
	echo "a backup that was cut is a success" >&2
	exit 1
fi
[[ ! -e $work/first ]]
backup web "$work/second"
[[ $(sha256sum <"$work/second.tar") == "$(control lxd50/images | jq -r '.[0].fingerprint')  -" ]]
echo ok
