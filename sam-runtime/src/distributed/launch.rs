//! The one way into a training of several ranks, and out of it.

use std::fmt;

use super::comm::Comm;

/// Runs a training on all ranks: the processes that mpirun or srun has started, or this one alone.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use candle_nn::Optimizer;
/// use sam_runtime::distributed::{self, Comm};
/// use sam_runtime::optim::{ParamsSgd, Sgd};
/// use sam_runtime::sam;
///
/// #[sam(rho = 0.05, all_reduce = world)]
/// fn loss(w: &Var, x: &Tensor, world: &Comm) -> Result<Tensor> {
///     x.matmul(w)?.sqr()?.mean_all()
/// }
///
/// fn main() -> Result<()> {
///     distributed::run(|world| {
///         let w = Var::ones((3, 1), DType::F32, &Device::Cpu)?;
///         world.broadcast_vars([w.clone()])?;
///         let mut sgd = Sgd::new(vec![w.clone()], ParamsSgd::default())?;
///         let x = Tensor::randn(0f32, 1., (10, 3), &Device::Cpu)?;
///         sgd.backward_step(&loss(&w, &x, world)?)
///     })
/// }
/// ```
///
/// With one rank it calls `body` and returns what that returns. With several, the job must not wait for a rank that has left it:
///
/// - If `body` returns an error, this prints it with the number of the rank, and ends all processes. It does not return then.
/// - A panic on any thread of a rank does the same, also one that would be caught.
/// - A rank that waits for the others longer than [`Comm::set_timeout`] ends the job, and says which ranks it was waiting for.
/// - A rank that returns before the others is an error on all.
///
/// With the feature `mpi` it initializes MPI, once in a process: call it on the main thread, around all that is done. MPI ends
/// when it returns, and a clone of the [`Comm`] is of no use after that.
///
/// # Errors
/// Those of `body`, with one rank. If mpirun has started several processes and this program is built without the feature `mpi`,
/// or for another MPI: each would train alone. If MPI cannot be initialized.
pub fn run<T, E>(body: impl FnOnce(&Comm) -> Result<T, E>) -> Result<T, E>
where
    E: From<candle_core::Error> + fmt::Display,
{
    #[cfg(feature = "mpi")]
    return super::mpi::run(body);
    #[cfg(not(feature = "mpi"))]
    {
        super::launcher::check(|name| std::env::var(name).ok(), None)?;
        body(&Comm::solo())
    }
}
