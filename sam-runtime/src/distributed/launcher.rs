//! Which launcher has started this process, and whether it started what MPI sees.

use candle_core::Result;

use crate::core::error::Error;

/// Variables with the number of processes, and the launcher that sets them.
const LAUNCHERS: [(&str, &str); 2] = [("OMPI_COMM_WORLD_SIZE", "OpenMPI's mpirun"), ("PMI_SIZE", "MPICH's mpirun")];

/// An error if a launcher has started more processes than the `size` that communicate: each would train alone. `None`: this
/// program is built without MPI.
pub(super) fn check(variable: impl Fn(&str) -> Option<String>, size: Option<usize>) -> Result<()> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    for (name, launcher) in LAUNCHERS {
        let Some(started) = number(name).filter(|started| *started != size.unwrap_or(1)) else { continue };
        let why = match size {
            None => format!(
                "{launcher} has started {started} processes, and this program is built without MPI: each would train \
                 alone; build it with the feature `mpi`, or start it without mpirun"
            ),
            Some(size) => format!(
                "{launcher} has started {started} processes ({name}), and MPI sees {size}: the program is linked with \
                 another MPI than that of the launcher; use the mpirun of the MPI that it was built with"
            ),
        };
        Err(Error::Ranks(why))?;
    }
    if size.unwrap_or(1) == 1 {
        if let Some(started) = number("WORLD_SIZE").filter(|started| *started > 1) {
            Err(Error::Ranks(format!(
                "torchrun, or another launcher without MPI, has started {started} processes (WORLD_SIZE): each would \
                 train alone; start them with mpirun or srun"
            )))?;
        }
        if let Some(tasks) = number("SLURM_NTASKS").filter(|tasks| *tasks > 1) {
            tracing::warn!(
                "Slurm has {tasks} tasks (SLURM_NTASKS), and this process is alone: start it with srun or mpirun"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use super::*;

    fn message(variables: &[(&str, &str)], size: Option<usize>) -> String {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        check(find, size).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn processes_that_would_train_alone_are_refused() {
        assert_eq!(message(&[], None), "");
        assert_eq!(message(&[("OMPI_COMM_WORLD_SIZE", "1")], None), "");
        assert_eq!(message(&[("OMPI_COMM_WORLD_SIZE", "4")], Some(4)), "");
        assert_eq!(message(&[("WORLD_SIZE", "4"), ("PMI_SIZE", "4")], Some(4)), "");
        assert_eq!(message(&[("SLURM_NTASKS", "4")], Some(1)), "");
        for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
            assert!(message(&[(variable, "4")], None).contains("4 processes, and this program is built without MPI"));
            assert!(message(&[(variable, "4")], Some(1)).contains("MPI sees 1"));
        }
        assert!(message(&[("WORLD_SIZE", "2")], None).contains("start them with mpirun"));
        assert!(message(&[("WORLD_SIZE", "2")], Some(1)).contains("start them with mpirun"));
    }
}
