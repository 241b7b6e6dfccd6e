#!/usr/bin/env bash
# The whole of candle-transformers, unchanged, on `sam_runtime::nn`: its dependency candle-nn is a crate with the one line
# `pub use sam_runtime::nn::*;`. Builds it, then checks gradients and trains the models of models.rs.
#
#   tests/transformers/check.sh                all models
#   tests/transformers/check.sh bert llama     these
#
# The sources are the registry's copy, and everything is made in target/transformers. The status is 77 where the registry
# cannot be reached, after a line that says why.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/transformers
version=0.11.1

mkdir -p $work/candle-nn/src $work/registry/src
cp tests/transformers/models.toml $work/Cargo.toml
cp tests/transformers/models.lock $work/Cargo.lock
cp tests/transformers/candle-nn.toml $work/candle-nn/Cargo.toml
echo 'pub use sam_runtime::nn::*;' >$work/candle-nn/src/lib.rs

# A crate that depends on the registry's, to get at its sources.
cat >$work/registry/Cargo.toml <<END
[package]
name = "registry"
edition = "2024"
[dependencies]
candle-transformers = "=$version"
[workspace]
END
touch $work/registry/src/lib.rs
metadata=$(cargo metadata --format-version 1 --manifest-path $work/registry/Cargo.toml 2>$work/registry.log) || {
    echo "skipped: candle-transformers $version is not in reach: $(tail -1 $work/registry.log)"
    exit 77
}
source=$(tr ',' '\n' <<<"$metadata" | sed -n "s|.*\"manifest_path\":\"\(.*/candle-transformers-$version\)/Cargo.toml\".*|\1|p" | head -1)

rm -rf $work/candle-transformers
cp -r "$source" $work/candle-transformers
chmod -R u+w $work/candle-transformers
sed -i "s|^\[dependencies.candle-nn\]$|&\npath = \"../candle-nn\"|" $work/candle-transformers/Cargo.toml

CARGO_TARGET_DIR=target cargo build --quiet --release --locked --manifest-path $work/Cargo.toml
target/release/transformers-check "$@"
