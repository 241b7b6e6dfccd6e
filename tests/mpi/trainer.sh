# The trainer on several ranks: the same training on any number of them, faults, and resuming. Sourced by ../mpi.sh, which has
# `options` and `log`.
# shellcheck shell=bash disable=SC2154
trainer() {
    local n pid
    work=$(mktemp -d)
    cat >"$work/long.toml" <<'END'
model = "mlp-norm"
batch = 128
m = 32
epochs = 12
lr = 0.05
images = 4000.0
ema = 0.9
END

    # Without batch normalization, whose statistics are of what one rank sees in turn.
    for n in 1 2 4; do
        train "$n" "$work/$n" "$work/long.toml" --set 'model="mlp"'
        expect 0 "12 epochs|test error"
        "target/release/examples/ranks" same "$work/1/weights.safetensors" "$work/$n/weights.safetensors"
    done

    train 3 "$work/three" "$work/long.toml"
    expect error "rank [0-9] of 3: a batch has 128 images, for 3 ranks"
    train 4 "$work/few" "$work/long.toml" --set images=6.0 --set batch=3 --set m=0
    expect error "rank [0-9] of 4: a batch has 3 images, for 4 ranks"
    train 2 "$work/nan" "$work/long.toml" --set lr=1e30
    expect error "rank [0-9] of 2: step [0-9]+ diverged"

    # A rank with other data than the others.
    head -c 20000 LICENSE-APACHE >"$work/text0"
    head -c 9000 LICENSE-APACHE >"$work/text1"
    cat >"$work/text.toml" <<'END'
model = "gpt-w8"
length = 16
batch = 8
steps = 4
END
    # shellcheck disable=SC2016 # the ranks expand it
    on_ranks 2 sh -c 'exec target/release/train "$0"/text.toml --quiet --out "$0"/text --data "$0"/text${OMPI_COMM_WORLD_RANK:-$PMI_RANK}' "$work"
    expect error "rank 1 of 2: rank 1 has another training than rank 0: .*data set"

    # A full disk ends the job, and the checkpoint before is whole.
    mkdir "$work/small"
    if mount -t tmpfs -o size=1m tmpfs "$work/small" 2>/dev/null; then
        train 2 "$work/small/run" "$work/long.toml" --set 'model="mlp-norm-w256"' --every 10
        expect error "rank 0 of 2: .*No space left on device"
        umount "$work/small"
    fi

    # Killed, and stopped by a signal to one rank: resumed, it ends as if nothing had happened.
    train 2 "$work/whole" "$work/long.toml" --every 25
    expect 0 "test error"
    for signal in KILL USR1; do
        train 2 "$work/$signal" "$work/long.toml" --every 25 &
        pid=$!
        while ! [ -e "$work/$signal/checkpoint.safetensors" ]; do sleep 0.1; done
        pkill "-$signal" -n -f "release/train $work/long.toml --quiet --out $work/$signal" || true
        wait $pid || true
        ! [ -e "$work/$signal/result.json" ] || echo "note: the training had ended before SIG$signal"
        train 2 "$work/$signal" "$work/long.toml" --every 25 --resume
        expect 0 "test error"
        cmp "$work/whole/weights.safetensors" "$work/$signal/weights.safetensors"
        diff <(grep -v '"ranks"' "$work/whole/log.jsonl") <(grep -v '"ranks"' "$work/$signal/log.jsonl")
        echo "SIG$signal on 2 ranks: resumed bitwise"
    done

    # Prolonged on another number of ranks.
    train 4 "$work/whole" "$work/long.toml" --set epochs=14.0 --resume
    expect 0 "test error"
    rm -r "$work"
}

train() { # ranks, folder, recipe, options..
    local n=$1 folder=$2 recipe=$3
    shift 3
    on_ranks "$n" target/release/train "$recipe" --quiet --out "$folder" "$@"
}

on_ranks() { # ranks, command..
    local n=$1
    shift
    status=0
    timeout -k 5 120 mpirun "${options[@]}" -n "$n" "$@" >"$log" 2>&1 </dev/null || status=$?
}

expect() { # 0 or error, pattern
    local failed=0
    if [ "$1" = 0 ]; then [ "$status" = 0 ] || failed=1; else [ "$status" != 0 ] && [ "$status" != 124 ] || failed=1; fi
    if [ $failed = 1 ] || ! grep -qE "$2" "$log"; then
        echo "failed: the trainer ended with status $status, expected $1 and: $2"
        cat "$log"
        exit 1
    fi
    echo "trainer: $(grep -m1 -E "$2" "$log")"
}
