#!/usr/bin/env bash
# The page that `landscape` writes, in a browser without a window: it draws, it turns with a finger, and nothing is said on the
# console. The status is 77 where there is no Chromium, after a line that says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
[ -n "$browser" ] || { echo "skipped: there is no Chromium"; exit 77; }
cargo build --locked --release --workspace --bin train --bin landscape
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
printf 'model = "mlp-w16"\nimages = 400.0\nvalidation = 0.2\nbatch = 20\nepochs = 2.0\n' >"$work/recipe.toml"
for rho in 0.0 0.05; do target/release/train "$work/recipe.toml" --quiet --set rho=$rho --out "$work/$rho" >/dev/null; done
target/release/landscape "SGD=$work/0.0/weights.safetensors" "SAM=$work/0.05/weights.safetensors" --images 100 --grid 9 --order 8 \
    --quiet --out "$work/out" >/dev/null

# What the visitor does, and what is seen of it.
cat "$work/out/landscape.html" tests/page/visit.html >"$work/visited.html"
for size in 1200,900 390,844; do
    "$browser" --headless=new --no-sandbox --disable-gpu --window-size=$size --virtual-time-budget=3000 --enable-logging=stderr \
        --dump-dom "file://$work/visited.html" >"$work/dom" 2>"$work/said"
    if grep -i "console" "$work/said"; then echo "failed: the page says something on the console"; exit 1; fi
    seen=$(grep -o '<p>seen: [^<]*' "$work/dom" | cut -c4- || true)
    echo "$size: $seen"
    [ "$seen" = "seen: 7 canvases drawn, turned, fits" ] || { echo "failed: expected seven canvases, a turn, and no scrolling sideways"; exit 1; }
done
