#!/usr/bin/env bash
# Distributed training with MPI, on this machine: builds tests/examples/ranks.rs with the feature `mpi`, and runs it with 2, 3 and
# 4 ranks. Trainings have to end with the weights of one process; every fault of a rank has to end the job within seconds, with one
# message that says which rank and why.
#
#   tests/mpi.sh            all
#   tests/mpi.sh stop       this fault
#   tests/mpi.sh trainer    the trainer of sam-examples (mpi/trainer.sh)
#
# The MPI is that of `mpirun` and `mpicc`: OpenMPI or MPICH (with MPICC=mpicc.mpich, after `cargo clean -p mpi-sys`, if another one
# was built with before). Where there is none and this is root on Debian, OpenMPI is installed.
# The status is 77 where MPI cannot be had, after a line that says why.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "skipped: $1"
    exit 77
}

if ! command -v mpirun >/dev/null || ! command -v mpicc >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "there is no MPI (mpirun, mpicc)"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends openmpi-bin libopenmpi-dev libclang-dev clang; } >/dev/null 2>&1 ||
        skip "there is no MPI, and OpenMPI could not be installed"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo build --locked --release --workspace --example ranks --bin train --features sam-examples/mpi 2>&1 | tee "$log" || {
    grep -qiE "libclang|unable to find.*clang" "$log" && skip "libclang, which generates the bindings of MPI, is not installed"
    exit 1
}

source tests/mpi/mpirun.sh
source tests/mpi/trainer.sh
timeout 30 mpirun "${options[@]}" -n 2 true </dev/null || skip "mpirun cannot start two processes here"
# MPICH ends the job with the status of a rank that has left it, and says nothing.
told_by_mpirun=
if is_openmpi; then told_by_mpirun="[Ee]xit code: *3"; fi

# Runs a mode on so many ranks: sets `status`, `seconds`, and fills the log.
on() { # ranks, mode
    local start=$SECONDS
    status=0
    timeout -k 5 60 mpirun "${options[@]}" -n "$1" target/release/examples/ranks "$2" >"$log" 2>&1 </dev/null || status=$?
    seconds=$((SECONDS - start))
}

fault() { # mode, the message of the last rank or of whoever ends the job, numbers of ranks
    local n pattern
    for n in ${3:-2 3 4}; do
        on $n "$1"
        pattern=${2//LAST/$((n - 1))}
        pattern=${pattern//SIZE/$n}
        echo "$1 on $n ranks: status $status after $seconds s: $(grep -m1 -E "$pattern" "$log" || echo "no message")"
        if [ $status = 0 ] || [ $status = 124 ] || [ $seconds -gt 20 ] || { [ -n "$pattern" ] && ! grep -qE "$pattern" "$log"; }; then
            echo "failed: $1 on $n ranks: expected the end of the job and: $pattern"
            cat "$log"
            exit 1
        fi
        # The others leave the word to the rank that failed.
        if [ "$(grep -cE "^rank [0-9]+ of $n( panicked)?:" "$log")" -gt 1 ]; then
            echo "failed: $1 on $n ranks: more than one message"
            cat "$log"
            exit 1
        fi
    done
}

all() {
    local n optimizer
    for n in 1 2 3 4; do
        for optimizer in sgd adamw; do
            on $n $optimizer
            [ $status = 0 ] || { echo "failed: $optimizer on $n ranks: status $status"; cat "$log"; exit 1; }
            grep "^trained" "$log"
        done
    done
    for mode in panic panic-in-a-thread err exit kill stop nan fewer-steps diverge another-thread; do one $mode; done
    for mode in panic@0 err@0 kill@0 stop@0 kill-in-an-all-reduce stop-in-an-all-reduce; do one $mode; done
    trainer
}

one() {
    case $1 in
    panic | panic-in-a-thread) fault "$1" "^rank LAST of SIZE panicked" ;;
    err) fault err "^rank LAST of SIZE: out of data" ;;
    exit) fault exit "$told_by_mpirun" ;;
    kill) fault kill "rank LAST .*signal 9|EXIT CODE: 9" ;;
    stop) fault stop "^rank [0-9] of SIZE: no answer from rank (LAST|0) for 3 s" ;;
    nan) fault nan "^rank LAST of SIZE: the loss is NaN" ;;
    fewer-steps) fault fewer-steps "^rank [0-9] of SIZE: rank 0 is at .*, rank LAST at the end of its training" ;;
    diverge) fault diverge "^rank [0-9] of SIZE: the replicas have diverged: .* on rank LAST" ;;
    panic@0) fault panic@0 "^rank 0 of SIZE panicked" 3 ;;
    err@0) fault err@0 "^rank 0 of SIZE: out of data" 3 ;;
    kill@0) fault kill@0 "rank 0 .*signal 9|EXIT CODE: 9" 3 ;;
    stop@0) fault stop@0 "^rank [12] of SIZE: no answer from rank 0 for 3 s" 3 ;;
    kill-in-an-all-reduce) fault "$1" "rank LAST .*signal 9|EXIT CODE: 9" "2 4" ;;
    stop-in-an-all-reduce) fault "$1" "^rank [0-9] of SIZE: no answer from ((rank [0-9], )*rank LAST|rank 0|the other ranks) for 3 s" "2 4" ;;
    another-thread) fault another-thread "^rank LAST of SIZE: a call of MPI from another thread" ;;
    trainer) trainer ;;
    *) echo "unknown fault $1" && exit 2 ;;
    esac
}

if [ $# = 0 ]; then all; else for mode in "$@"; do one "$mode"; done; fi
echo "MPI: all as expected"
