use candle_core::{Result, Tensor};
use sam_runtime::sam;

#[sam(with = config)]
fn loss(x: &Tensor) -> Result<Tensor> {
    x.sqr()?.mean_all()
}

#[sam(with = self)]
fn none() -> Result<Tensor> {
    Tensor::zeros((), candle_core::DType::F32, &candle_core::Device::Cpu)
}

fn main() {}
