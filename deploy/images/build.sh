#!/usr/bin/env bash
# Builds the images as target/images/<name>.tar. An image has no base image: it holds a static program, root
# certificates and a non-root user. The files are OCI archives, for `ctr images import`, `podman load`, `docker load`
# (25 or newer) and `skopeo copy`.
#
#   build.sh [NAME…]     builds all images, or these: cli gateway matchmaker session director inventory gameserver
#
# It needs neither Docker nor a network. Set CARGO to use another cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."

ALL=(cli gateway matchmaker session director inventory gameserver)
# The image holds only the program. If it is larger than this, it contains unexpected files.
LARGEST=$((60 << 20))
# A user that does not exist on the host.
OWNER=65532:65532

fail() {
    printf 'images: error: %s\n' "$1" >&2
    printf 'images: help:  %s\n' "$2" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

names=("$@")
[ ${#names[@]} -gt 0 ] || names=("${ALL[@]}")
for name in "${names[@]}"; do
    [[ " ${ALL[*]} " == *" $name "* ]] || fail "there is no image '$name'" "choose one of: ${ALL[*]}"
done
for tool in buildah strip python3 tar; do
    has $tool || fail "$tool is not on the PATH" "run deploy/local/install.sh --images"
done
roots=/etc/ssl/certs/ca-certificates.crt
[ -s $roots ] || fail "there are no root certificates in $roots" "run deploy/local/install.sh --images"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
target=$(rustc -vV | sed -n 's/^host: //p')
out=target/images
bins=target/static/$target/release
mkdir -p "$out"

program() { [ "$1" = cli ] && echo garage || echo "garage-$1"; }

# One build for all images compiles each dependency once. With an explicit target, RUSTFLAGS does not apply to build
# scripts and procedural macros. Procedural macros cannot be static.
wanted=()
for name in "${names[@]}"; do wanted+=(--bin "$(program "$name")"); done
# The director's image contains the game server too, because games may run as processes of the director.
[[ " ${names[*]} " != *" director "* ]] || wanted+=(--bin garage-gameserver)
RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=target/static \
    ${CARGO:-cargo} build --release --workspace --target "$target" "${wanted[@]}"

work=$(mktemp -d "$PWD/$out/.work-XXXXXX")
# The driver vfs and a storage folder of our own work inside a container, and do not touch the system's images.
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
trap 'rm -rf "$work"' EXIT
# Nothing is downloaded, so no signature needs to be checked.
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
        fail "$program is not static, and the image has no libraries" "run rm -r $bins, and build again"
    fi
    cp $roots "$root/etc/ssl/certs/"
    echo 'garage:x:65532:65532:Garage:/:/nonexistent' >"$root/etc/passwd"
    echo 'garage:x:65532:' >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    # Permissions that do not depend on the umask of the build.
    chmod -R u=rwX,go=rX "$root"

    container=$(buildah "${storage[@]}" from --signature-policy "$work/policy.json" scratch)
    buildah "${storage[@]}" copy --quiet "$container" "$root/" / >/dev/null
    buildah "${storage[@]}" config --user $OWNER --entrypoint "[\"/$program\"]" --cmd '' --workingdir / \
        --label org.opencontainers.image.title="garage-$name" --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.licenses=Apache-2.0 "$container"
    # A fixed timestamp: the same files always give the same image.
    buildah "${storage[@]}" commit --quiet --rm --disable-compression=false --timestamp 0 --format oci --signature-policy "$work/policy.json" \
        "$container" "oci:$work/$name.oci:$version" >/dev/null
    # containerd and Docker read the image's name here. buildah writes only the tag.
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
    # The unpacked size, which a node needs on its disk.
    size=$(du --bytes --summarize "$root" | cut -f 1)
    mv -f "$work/$name.tar" "$out/$name.tar"
    printf '%-36s %5.1f MiB, %5.1f MiB packed  %s\n' "garage/$name:$version" \
        "$(awk "BEGIN { print $size / 1048576 }")" "$(awk "BEGIN { print $(stat -c %s "$out/$name.tar") / 1048576 }")" \
        "$out/$name.tar"
    [ "$size" -le $LARGEST ] || fail "garage/$name is larger than $((LARGEST >> 20)) MiB" "find what made it grow, for example with cargo bloat"
}

for name in "${names[@]}"; do image "$name"; done
