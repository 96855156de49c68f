#!/usr/bin/env bash
# Builds the images, target/images/<name>.tar, each from nothing: a static program, certificate roots, a user who is not
# root. They are OCI archives, for `ctr images import`, `podman load`, `docker load` (25 or newer) and `skopeo copy`.
#
#   build.sh [NAME…]     all of them, or these: cli gateway matchmaker session director inventory gameserver
#
# Needs neither Docker nor a base image nor a network. CARGO names another cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."

ALL=(cli gateway matchmaker session director inventory gameserver)
# A scratch image holds nothing but the program; what is larger has something in it that does not belong.
LARGEST=$((60 << 20))
# Nobody of the host.
OWNER=65532:65532

fail() {
    printf 'images: error: %s\n' "$1" >&2
    printf 'images: cure:  %s\n' "$2" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

names=("$@")
[ ${#names[@]} -gt 0 ] || names=("${ALL[@]}")
for name in "${names[@]}"; do
    [[ " ${ALL[*]} " == *" $name "* ]] || fail "no image is called '$name'" "one of: ${ALL[*]}"
done
for tool in buildah strip python3 tar; do
    has $tool || fail "$tool is not on the path" "deploy/local/install.sh --images"
done
roots=/etc/ssl/certs/ca-certificates.crt
[ -s $roots ] || fail "no certificate roots in $roots" "deploy/local/install.sh --images"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
target=$(rustc -vV | sed -n 's/^host: //p')
out=target/images
bins=target/static/$target/release
mkdir -p "$out"

program() { [ "$1" = cli ] && echo garage || echo "garage-$1"; }

# One build for all, so that each dependency is built once. The target is named, or the flag would also be for the
# programs that run while others are built, and those load libraries.
wanted=()
for name in "${names[@]}"; do wanted+=(--bin "$(program "$name")"); done
# The director finds the game server beside itself when games are its own processes.
[[ " ${names[*]} " != *" director "* ]] || wanted+=(--bin garage-gameserver)
RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=target/static \
    ${CARGO:-cargo} build --release --workspace --target "$target" "${wanted[@]}"

work=$(mktemp -d "$PWD/$out/.work-XXXXXX")
# Driver vfs and a storage of our own: it works in a container, and leaves the system's images alone.
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
trap 'rm -rf "$work"' EXIT
# Nothing is fetched, so there is nobody to trust or not.
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/policy.json"

image() {
    local name=$1 program root container size
    program=$(program "$name")
    root=$work/$name
    mkdir -p "$root/etc/ssl/certs"
    strip -o "$root/$program" "$bins/$program"
    if [ "$name" = director ]; then
        strip -o "$root/garage-gameserver" "$bins/garage-gameserver"
    fi
    if [[ $(readelf -l "$root/$program") == *INTERP* ]]; then
        fail "$program wants a loader and libraries, which the image does not have" "rm -r $bins, and build again"
    fi
    cp $roots "$root/etc/ssl/certs/"
    echo 'garage:x:65532:65532:Garage:/:/nonexistent' >"$root/etc/passwd"
    echo 'garage:x:65532:' >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    # Not what the umask of who builds says.
    chmod -R u=rwX,go=rX "$root"

    container=$(buildah "${storage[@]}" from --signature-policy "$work/policy.json" scratch)
    buildah "${storage[@]}" copy --quiet "$container" "$root/" / >/dev/null
    buildah "${storage[@]}" config --user $OWNER --entrypoint "[\"/$program\"]" --cmd '' --workingdir / \
        --label org.opencontainers.image.title="garage-$name" --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.licenses=Apache-2.0 "$container"
    # The same files make the same image, whenever it is built.
    buildah "${storage[@]}" commit --quiet --rm --disable-compression=false --timestamp 0 --format oci --signature-policy "$work/policy.json" \
        "$container" "oci:$work/$name.oci:$version" >/dev/null
    # The name that containerd and Docker look for; buildah writes the tag alone.
    python3 - "$work/$name.oci/index.json" "docker.io/garage/$name:$version" <<'PYTHON'
import json, sys
path, name = sys.argv[1:]
with open(path) as file:
    index = json.load(file)
index["manifests"][0].setdefault("annotations", {})["io.containerd.image.name"] = name
with open(path, "w") as file:
    json.dump(index, file)
PYTHON
    tar --create --file "$work/$name.tar" --directory "$work/$name.oci" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner .
    # Unpacked, as a node keeps it.
    size=$(du --bytes --summarize "$root" | cut -f 1)
    mv -f "$work/$name.tar" "$out/$name.tar"
    printf '%-36s %5.1f MiB, %5.1f MiB packed  %s\n' "garage/$name:$version" \
        "$(awk "BEGIN { print $size / 1048576 }")" "$(awk "BEGIN { print $(stat -c %s "$out/$name.tar") / 1048576 }")" \
        "$out/$name.tar"
    [ "$size" -le $LARGEST ] || fail "garage/$name is larger than $((LARGEST >> 20)) MiB" "look for what made it grow: cargo bloat"
}

for name in "${names[@]}"; do image "$name"; done
