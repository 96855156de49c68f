#!/usr/bin/env bash
# Checks that the tests reuse the build: after `cargo build --workspace`, `cargo test --workspace` must not compile again
# any dependency of the workspace, nor the library or program of a member. Otherwise every first `make test` takes many
# minutes longer. It compiles what the tests need, so it costs nothing extra before `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo build --workspace
cargo test --workspace --no-run --message-format=json >"$log"
tree=$(cargo tree --workspace --edges normal,build --prefix none --format '{p}')
python3 - "$log" "$tree" <<'PYTHON'
import json, re, sys

built = {tuple(line.split()[:2]) for line in sys.argv[2].splitlines()}


def package(artifact):
    """Name and version of an artifact's package, from an id like `path+file:///x/events#garage-events@0.1.0`."""
    end = artifact["package_id"].rpartition("#")[2]
    name, _, version = end.rpartition("@") if "@" in end else (artifact["package_id"].rpartition("#")[0].rpartition("/")[2], "", end)
    return name, "v" + version


again = set()
for line in open(sys.argv[1]):
    artifact = json.loads(line)
    if artifact.get("reason") == "compiler-artifact" and not artifact["fresh"] and not artifact["profile"]["test"]:
        name, version = package(artifact)
        kind = "/".join(artifact["target"]["kind"])
        # An example or a bench is not part of `cargo build`.
        if (name, version) in built and kind not in ("example", "bench", "test"):
            again.add(f"  {name} {version} ({kind}) with the features {', '.join(artifact['features']) or 'none'}")
if again:
    print("compiled a second time for the tests:", *sorted(again), sep="\n", file=sys.stderr)
    sys.exit("help: compare the features with `cargo tree -e features -i PACKAGE`, and add those that only tests switch on "
             "to deploy/workspace-hack/Cargo.toml")
PYTHON
echo "the tests reuse every package of the build"
