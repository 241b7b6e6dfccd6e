//! Several ranks train as one process does, send one gradient a step, and fail together. Here the ranks are threads;
//! `tests/mpi.sh` has the same with MPI and processes that die.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod failures;
mod ranks;
mod replicas;
mod steps;
