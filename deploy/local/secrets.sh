#!/usr/bin/env bash
# Creates the secrets of a Garage in a folder, one file for each. Existing files stay as they are, except the NATS
# credentials: they are signed again from their seeds, with the rights of this version.
#
#   secrets.sh FOLDER
#
# The NATS files are made by `garage`: $GARAGE, or the one on the PATH, or the one in target/release or target/debug.
set -euo pipefail
umask 077

[ $# -eq 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
command -v openssl >/dev/null || { echo "secrets: error: openssl is not on the PATH; run deploy/local/install.sh" >&2; exit 1; }
build=$(cd "$(dirname "$0")/../.." && pwd)/target
garage=
for program in "${GARAGE:-}" "$(command -v garage || true)" "$build/release/garage" "$build/debug/garage"; do
    [ -n "$garage" ] || [ ! -x "$program" ] || garage=$(realpath "$program")
done
[ -n "$garage" ] || {
    echo "secrets: error: cannot find garage; build it (cargo build --release --package garage-cli), or set GARAGE to its path" >&2
    exit 1
}
mkdir -p "$1"
cd "$1"

# Write a file completely or not at all: a later run would keep a truncated secret.
write() { cat >".$1.new" && mv ".$1.new" "$1"; }
# Hexadecimal digits need no escaping in a URL, in SQL or in a configuration file.
password() { [ -s "$1" ] || openssl rand -hex 24 | write "$1"; }

"$garage" config nats --out .
password nats-route.password
password redis.password
password redis-gateway.password
password mysql.password
password jwt.key
[ -s seal.key ] || openssl rand -base64 32 | write seal.key
[ -s token.pem ] || openssl genpkey -algorithm ed25519 | write token.pem
openssl pkey -in token.pem -pubout | write token.pub.pem

# The same passwords in the format that the servers read.
{
    route=$(cat nats-route.password)
    printf 'authorization { user: route, password: "%s" }\nroutes: [\n' "$route"
    for node in 0 1 2; do printf '  "nats-route://route:%s@nats-%s.nats-nodes:6222"\n' "$route" "$node"; done
    printf ']\n'
} | write nats-routes.conf
# The gateway may only read the projections. A test compares these rights with those of the local stack.
{
    printf 'user default on >%s ~* &* +@all\n' "$(cat redis.password)"
    printf 'user gateway on >%s ' "$(cat redis-gateway.password)"
    printf '~garage:watermark ~garage:sessions ~garage:players ~garage:queues ~garage:waits ~garage:minutes ~garage:timelines '
    printf '~garage:closed ~garage:letters -@all +@read +@connection +@transaction +time -@dangerous\n'
} | write redis-users.acl
