//! Programs on several ranks, started with mpirun or srun.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use sam_runtime::distributed;

/// Runs a program that does not share out its work: several ranks would do the same, and write to the same files.
///
/// # Errors
/// Those of the program, and if several ranks have been started.
pub fn on_one_rank(program: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    distributed::run(|world| {
        let ranks = world.size();
        ensure!(ranks == 1, "this program runs in one process, and {ranks} were started: start it without mpirun");
        program()
    })
}
