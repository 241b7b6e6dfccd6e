use candle_core::Tensor;
use sam_runtime::sam;

struct Error;

#[sam]
fn loss(x: &Tensor) -> Result<Tensor, Error> {
    x.sqr().and_then(|x| x.mean_all()).map_err(|_| Error)
}

#[sam(shards(x; m = 32))]
fn in_shards(x: &Tensor) -> Result<Tensor, Error> {
    x.sqr().and_then(|x| x.mean_all()).map_err(|_| Error)
}

fn main() {}
