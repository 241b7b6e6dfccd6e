#!/usr/bin/env bash
# What holds for the crates as others get them: packed, documented, and with other versions of their dependencies.
#
#   tests/package/check.sh rust-version       the manifest and rust-toolchain.toml name the same version of Rust
#   tests/package/check.sh packages           packs sam-macros and sam-runtime, and runs the quick start of the README and
#                                             the example `resume` in a crate outside the workspace that depends on the
#                                             packages alone
#   tests/package/check.sh docs               documents the packages as docs.rs does (needs a nightly toolchain)
#   tests/package/check.sh minimal-versions   compiles both crates with the oldest dependencies that the manifests allow
#                                             (needs a nightly toolchain to find them, and compiles with the pinned one)
#
# The status is 77 where a check cannot run, after a line that says why.
set -euo pipefail
cd "$(dirname "$0")/../.."
crates=(sam-macros sam-runtime)
work=target/package-check
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

skip() {
    echo "skipped: $*"
    exit 77
}

fail() {
    echo "error: $*" >&2
    exit 1
}

nightly() { cargo +nightly --version >/dev/null 2>&1 || skip "no nightly toolchain (rustup toolchain install nightly)"; }

# The whole gate runs with the toolchain of rust-toolchain.toml: if it is the version that the manifest promises, that is
# the check of the promise.
rust_version() {
    local promised pinned
    promised=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    pinned=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    case $pinned in
    "$promised" | "$promised".*) echo "rust-version $promised, toolchain $pinned" ;;
    *) fail "Cargo.toml has rust-version $promised, but rust-toolchain.toml has $pinned: nothing checks the former" ;;
    esac
}

# Packs both crates, and unpacks them to $work/NAME.
pack() {
    local crate version file list
    # --allow-dirty: the gate also runs before a commit.
    CARGO_TARGET_DIR=$work/target cargo package --quiet --locked --no-verify --allow-dirty -p sam-macros -p sam-runtime
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    for crate in "${crates[@]}"; do
        rm -rf "${work:?}/$crate"
        mkdir -p "$work/$crate"
        file=$work/target/package/$crate-$version.crate
        tar -xzf "$file" -C "$work/$crate" --strip-components 1
        for list in README.md LICENSE-MIT LICENSE-APACHE src/lib.rs; do
            [ -s "$work/$crate/$list" ] || fail "the package $crate has no $list"
        done
        ! [ -e "$work/$crate/fuzz" ] || fail "the package $crate has its fuzz targets"
        echo "$crate $version: $(du -b "$file" | cut -f1) bytes, $(find "$work/$crate" -type f | wc -l) files"
    done
}

# A crate outside the workspace, beside the unpacked packages.
outside() {
    mkdir -p "$work/outside/src/bin"
    cp tests/package/outside.toml "$work/outside/Cargo.toml"
    cp Cargo.lock "$work/outside/Cargo.lock" # the versions that have been tested
    # The quick start: the first Rust code of the README with a `main`.
    awk '/^```rust/ { inside = 1; code = ""; next }
         /^```/ { if (inside && code ~ /fn main\(/) { printf "%s", code; exit } inside = 0 }
         inside { code = code $0 "\n" }' README.md >"$work/outside/src/main.rs"
    [ -s "$work/outside/src/main.rs" ] || fail "README.md has no Rust code with a main function"
    rm -f "$work"/outside/src/bin/*
    cp examples/examples/quickstart.rs examples/examples/resume.rs "$work/outside/src/bin"
}

packages() {
    local program
    pack
    outside
    cd "$work/outside"
    export CARGO_TARGET_DIR=../target CARGO_PROFILE_DEV_DEBUG=false
    cargo build --quiet --bins
    for program in outside quickstart; do
        echo "running $program"
        "../target/debug/$program"
    done
    echo "running resume"
    ../target/debug/resume | tee ../resume.log
    grep -qx "bitwise equal: true" ../resume.log || fail "a resumed training differs from one without a break"
}

docs() {
    nightly
    pack
    outside
    cd "$work/outside"
    CARGO_TARGET_DIR=../target RUSTDOCFLAGS="--cfg docsrs -D warnings" \
        cargo +nightly doc --quiet --no-deps -p sam-macros -p sam-runtime
}

minimal_versions() {
    local crate
    nightly
    # A copy, because the lock file stands beside the workspace's manifest.
    rm -rf "$work/minimal"
    mkdir -p "$work/minimal"
    sed 's/^members = .*/members = ["sam-macros", "sam-runtime"]/; /^sam-tests/d; /^\[profile.release.package.sam-tests/,/^$/d' \
        Cargo.toml >"$work/minimal/Cargo.toml"
    cp rust-toolchain.toml clippy.toml "$work/minimal"
    for crate in "${crates[@]}"; do cp -r "$crate" "$work/minimal"; done
    cd "$work/minimal"
    cargo +nightly update --quiet -Z direct-minimal-versions || fail "the manifests allow versions that do not go together"
    CARGO_TARGET_DIR=../target-minimal cargo check --locked -p sam-macros -p sam-runtime
}

case ${1:-} in
rust-version) rust_version ;;
packages) packages ;;
docs) docs ;;
minimal-versions) minimal_versions ;;
*)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
