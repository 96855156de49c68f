#!/usr/bin/env bash
# Makes the secrets of a Garage in a folder, one a file. What is there already stays as it is.
#
#   secrets.sh FOLDER
set -euo pipefail
umask 077

[ $# -eq 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
command -v openssl >/dev/null || { echo "secrets: error: openssl is not on the path (deploy/local/install.sh)" >&2; exit 1; }
mkdir -p "$1"
cd "$1"

# A file is there whole or not at all: a secret that was cut short would be kept.
write() { cat >".$1.new" && mv ".$1.new" "$1"; }
# Hexadecimal digits need no escape in a URL, in SQL or in a configuration file.
password() { [ -s "$1" ] || openssl rand -hex 24 | write "$1"; }

users=(admin gateway matchmaker session director inventory game sys)
for user in "${users[@]}" route; do password "nats-$user.password"; done
password redis.password
password redis-gateway.password
password mysql.password
password jwt.key
[ -s seal.key ] || openssl rand -base64 32 | write seal.key
[ -s token.pem ] || openssl genpkey -algorithm ed25519 | write token.pem
openssl pkey -in token.pem -pubout | write token.pub.pem

# The same passwords once more, as the servers read them.
for user in "${users[@]}"; do
    printf 'password_%s: "%s"\n' "$user" "$(cat "nats-$user.password")"
done | write nats-passwords.conf
{
    route=$(cat nats-route.password)
    printf 'authorization { user: route, password: "%s" }\nroutes: [\n' "$route"
    for node in 0 1 2; do printf '  "nats-route://route:%s@nats-%s.nats-nodes:6222"\n' "$route" "$node"; done
    printf ']\n'
} | write nats-routes.conf
# The gateway may read the projections and nothing else; a test holds this to what the local stack gives it.
{
    printf 'user default on >%s ~* &* +@all\n' "$(cat redis.password)"
    printf 'user gateway on >%s ' "$(cat redis-gateway.password)"
    printf '~garage:watermark ~garage:sessions ~garage:players ~garage:queues ~garage:waits ~garage:minutes ~garage:timelines '
    printf '~garage:closed ~garage:letters -@all +@read +@connection +@transaction +time -@dangerous\n'
} | write redis-users.acl
