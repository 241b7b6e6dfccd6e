//! Losses whose gradient is the mean over the ranks of a communicator.

use candle_core::{Result, Tensor, Var};
use sam_runtime::distributed::Comm;
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[sam(rho = 0.5, all_reduce = world)]
fn by_reference(w: &Var, world: &Comm) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

/// The body may use it, too.
#[sam(rho = 0.5, all_reduce = world, ascent = synchronized)]
fn synchronized(w: &Var, world: &Comm) -> Result<Tensor> {
    w.sqr()?.sum_all()? * world.size() as f64
}

#[sam(rho = 0.5, all_reduce = world, ascent = per_rank, shards(x; m = 1))]
fn in_shards(w: &Var, x: &Tensor, world: &Comm) -> Result<Tensor> {
    w.sqr()?.sum_all()? * x.mean_all()?.to_scalar::<f64>()?
}

#[derive(Debug)]
struct Trainer {
    w: Var,
    world: Comm,
}

impl Trainer {
    #[sam(rho = 0.5, all_reduce = &self.world)]
    fn loss(&self) -> Result<Tensor> {
        self.w.sqr()?.sum_all()
    }
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, world) = (three_four(), Comm::solo());
    assert_sharp(&by_reference(&w, &world)?, &w, 1.);
    assert_sharp(&synchronized(&w, &world)?, &w, 1.);
    let ones = Tensor::ones(2, w.dtype(), w.device())?;
    assert_sharp(&in_shards(&w, &ones, &world)?, &w, 1.);
    let trainer = Trainer { w: w.clone(), world };
    assert_sharp(&trainer.loss()?, &w, 1.);
    Ok(())
}
