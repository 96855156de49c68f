#!/usr/bin/env bash
# Runs the tests of the database and one end-to-end test on MySQL. `make test` has run them on MariaDB. Without a network,
# MySQL cannot be downloaded: then this says so, and is not a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
deploy/local/install.sh --mysql || status=$?
if [ "$status" -eq 75 ]; then
    echo "NOT TESTED on MySQL: its packages could not be downloaded (see above)"
    exit 0
elif [ "$status" -ne 0 ]; then
    exit "$status"
fi
export GARAGE_LOCAL_DATABASE=mysql
# `--package` instead of `--workspace` would compile the dependencies again, with the features of one package.
cargo test --workspace --test database
cargo test --workspace --test servers the_database_keeps_its_data_through_a_kill_and_leaves_no_process
cargo test --workspace --test e2e store::a_match_uses_the_items_that_a_player_bought_and_mounted
echo "tested on MySQL: $("${XDG_CACHE_HOME:-$HOME/.cache}/garage/mysql/mysqld" --no-defaults --version)"
