#![deny(unused_must_use)]

use candle_core::{Result, Tensor};
use sam_runtime::Sam;

fn not_descended(sam: &Sam, x: &Tensor) -> Result<()> {
    let mut loss = |_| x.sqr()?.mean_all();
    sam.ascend(&mut loss)?.perturb()?;
    Ok(())
}

fn main() {}
