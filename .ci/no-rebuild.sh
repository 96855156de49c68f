#!/usr/bin/env bash
# Checks that the tests reuse the build: after `cargo build --workspace`, `cargo test --workspace` must not compile a
# dependency of the workspace, or the library or program of a member, a second time with other features. Otherwise the
# first `make test` takes many minutes longer. This compiles only what `cargo test` needs anyway.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cargo build --workspace --message-format=json >"$folder/build"
cargo test --workspace --no-run --message-format=json >"$folder/test"
python3 - "$folder/build" "$folder/test" <<'PYTHON'
import json, sys


def artifacts(path):
    """The compiled libraries, programs, procedural macros and build scripts of a build, without test targets."""
    for line in open(path):
        artifact = json.loads(line)
        if artifact.get("reason") == "compiler-artifact" and not artifact["profile"]["test"]:
            if not {"example", "bench", "test"} & set(artifact["target"]["kind"]):
                yield artifact


built = list(artifacts(sys.argv[1]))
files = {file for artifact in built for file in artifact["filenames"]}
packages = {artifact["package_id"] for artifact in built}
# A package that only tests use is not in the build, and is compiled now. A second variant that an earlier test run left
# behind is fresh, but its files are not those of the build.
again = sorted(
    f"  {artifact['package_id'].rpartition('/')[2]} ({'/'.join(artifact['target']['kind'])}), "
    f"features: {', '.join(artifact['features']) or 'none'}"
    for artifact in artifacts(sys.argv[2])
    if artifact["package_id"] in packages and (not artifact["fresh"] or files.isdisjoint(artifact["filenames"]))
)
if not files:
    sys.exit("cargo build reported no artifacts, so there is nothing to compare")
if again:
    print("compiled a second time for the tests:", *again, sep="\n", file=sys.stderr)
    sys.exit("help: compare the features with `cargo tree -e features -i PACKAGE`, and add those that only tests switch on "
             "to deploy/workspace-hack/Cargo.toml")
PYTHON
echo "the tests reuse every package of the build"
