# The `options` with which mpirun starts more ranks than there are cores, also as root and in a container. Sourced by ../mpi.sh and
# ../gpu/emulated.sh.
# shellcheck shell=bash disable=SC2034
is_openmpi() { mpirun --version 2>/dev/null | grep -q "Open MPI"; }

options=()
if is_openmpi; then
    options=(--oversubscribe --bind-to none)
    [ "$(id -u)" = 0 ] && options+=(--allow-run-as-root)
fi
# Containers often forbid the system call by which ranks of one machine copy from each other.
export OMPI_MCA_btl_vader_single_copy_mechanism=none RAYON_NUM_THREADS=1 RUST_BACKTRACE=0
