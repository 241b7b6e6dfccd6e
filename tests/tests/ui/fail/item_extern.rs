#![allow(improper_ctypes_definitions)]

use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam]
extern "C" fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

fn main() {}
