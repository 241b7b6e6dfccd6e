use candle_core::{Result, Tensor, Var};
use sam_runtime::{Sam, sam};

#[sam(gsam = 0.4, wsam = 0.9)]
fn two_combinations(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(shards(x; m = 3), micro_batches(x; m = 3))]
fn two_ways_to_split(w: &Var, x: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(w)?.sum_all()
}

#[sam(second_order, adaptive)]
fn not_the_plain_ball(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(unnormalized, p = 3)]
fn no_norm(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(with = sam, stable)]
fn twice(w: &Var, sam: &Sam) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

fn main() {}
