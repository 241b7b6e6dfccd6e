//! Data-parallel training: each rank has its share of every batch and its own ε̂, the gradient is the mean over the ranks.
//!
//! Alone it is a training on one rank. On four, with the feature `mpi` and an MPI library:
//!
//! ```sh
//! cargo build --release -p sam-examples --example distributed --features mpi
//! mpirun -n 4 --bind-to none target/release/examples/distributed
//! ```

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, Module, Optimizer, Sequential, VarBuilder, VarMap, linear, loss, seq};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_runtime::distributed::{self, Comm};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{plain, sam};

#[sam(rho = 0.05, all_reduce = world)]
fn loss(model: &Sequential, x: &Tensor, y: &Tensor, world: &Comm) -> Result<Tensor> {
    loss::cross_entropy(&model.forward(x)?, y)
}

fn train(world: &Comm) -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = seq().add(linear(2, 32, vb.pp("a"))?).add(Activation::Relu).add(linear(32, 2, vb.pp("b"))?);
    world.broadcast_vars(vars.all_vars())?; // initial weights are random: those of rank 0 count

    // The same seed, so that all ranks have the same data and shuffle it alike.
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let points: Vec<f32> = (0..2 * 512).map(|_| rng.random_range(-1.0..1.0)).collect();
    let x = Tensor::from_vec(points, (512, 2), &Device::Cpu)?;
    let y = (x.narrow(1, 0, 1)? * x.narrow(1, 1, 1)?)?.squeeze(1)?.gt(0f32)?.to_dtype(DType::U32)?;

    let mut order: Vec<u32> = (0..512).collect();
    let mut sgd = Sgd::new(vars.all_vars(), ParamsSgd { lr: 0.2, momentum: 0.9, ..ParamsSgd::default() })?;
    for epoch in 1..=10 {
        order.shuffle(&mut rng);
        for batch in world.batches(&order, 32 / world.size())? {
            let batch = Tensor::new(batch, &Device::Cpu)?;
            sgd.backward_step(&loss(&model, &x.index_select(&batch, 0)?, &y.index_select(&batch, 0)?, world)?)?;
        }
        world.check_replicas(vars.all_vars())?;
        let loss = plain(|| loss(&model, &x, &y, world))?.to_scalar::<f32>()?;
        if world.rank() == 0 {
            println!("epoch {epoch}, ranks: {}, loss {loss:.4}", world.size());
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    distributed::run(train)
}
