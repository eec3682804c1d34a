#!/usr/bin/env bash
set -euo pipefail
dir=$1 # that of -dir
control() {
	curl --silent --show-error --fail-with-body --unix-socket "$dir/control.socket" "http://lxdtest/$1" "${@:2}"
}

control servers # the line on standard output, again
control lxd50/inject -d '{"fault": "unavailable", "path": "/1.0/images", "times": 2}' # {"id":1}
control lxd50/inject -d '{"fault": "stall-request", "bytes": 1000, "method": "POST"}' # {"id":2}
control lxd50/release -d '{"id": 2}' # what is stalled goes on
control lxd50/remove -d '{"id": 1}'
control "lxd50/fired?id=1" # {"id":1,"fault":{…},"fired":0}
control lxd50/images -d '{"image": "db=alpine/3.22 public"}' # {"fingerprint":"…"}
control lxd50/images | jq -r '.[].aliases[]'
curl --silent --unix-socket "$dir/lxd50/unix.socket" http://lxd/1.0/images # a request of the API itself
control "lxd50/wait?method=GET&path=/1.0/images&timeout=30s" # waits for one, and shows it
control lxd50/requests | jq -r '.[] | "\(.method) \(.path) \(.status)"'
control lxd50/tokens -d '{"name": "ci"}' # {"token":"…"} for lxc remote add
control lxd50/tokens # what was not used
control lxd50/snapshot -X POST # {"id":3}
control lxd50/restore -d '{"id": 3}'
control lxd50/restart -X POST # operations are lost, images are not
control lxd50/reset -X POST # as it was when the command started
control stop -X POST
