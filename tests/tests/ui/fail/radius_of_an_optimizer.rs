use candle_core::Result;
use candle_nn::SGD;
use sam_runtime::Sam;

fn wrap(optimizer: SGD) -> Result<Sam> {
    Ok(Sam::new(optimizer))
}

fn main() {}
