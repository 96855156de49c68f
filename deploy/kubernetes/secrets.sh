#!/usr/bin/env bash
# Prints the Kubernetes Secrets of a Garage: one for each worker and server, with only the files that it needs.
# The files are in FOLDER. Missing ones are created first, and the NATS credentials are always signed again.
# Protect this folder and keep a copy: you need it to set up a lost cluster again.
#
#   secrets.sh FOLDER | kubectl apply --server-side -f -
set -euo pipefail

[ $# -eq 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
command -v kubectl >/dev/null || { echo "secrets: error: kubectl is not on the PATH" >&2; exit 1; }
"$(dirname "$0")/../local/secrets.sh" "$1"
cd "$1"

secret() {
    local name=$1 args=() file
    shift
    for file in "$@"; do args+=("--from-file=$file"); done
    echo ---
    kubectl create secret generic "$name" --namespace garage --dry-run=client --output yaml "${args[@]}"
}

# The certificate authority of a managed database, if the folder has one.
ca=()
[ ! -e mysql-ca.pem ] || ca=(mysql-ca.pem)
# The second key during a rotation, if the folder has one (deploy/docs/operating.md).
also() { [ ! -e "$1" ] || echo "$1"; }

secret nats operator.conf=nats-operator.conf routes.conf=nats-routes.conf
secret redis users.acl=redis-users.acl
secret mariadb mysql.password
secret admin nats.creds=nats-admin.creds mysql.password "${ca[@]}"
secret gateway nats.creds=nats-gateway.creds redis.password=redis-gateway.password jwt.key $(also jwt.next)
secret matchmaker nats.creds=nats-matchmaker.creds
secret session nats.creds=nats-session.creds redis.password seal.key token.pem nats-game.seed \
    $(also seal.next) $(also token.next.pem)
secret director nats.creds=nats-director.creds redis.password seal.key token.pub.pem \
    $(also seal.next) $(also token.next.pub.pem)
secret inventory nats.creds=nats-inventory.creds mysql.password "${ca[@]}"
