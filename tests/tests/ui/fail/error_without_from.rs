use candle_core::Tensor;
use sam_runtime::sam;

#[derive(Debug)]
struct Error;

#[sam]
fn own(x: &Tensor) -> Result<Tensor, Error> {
    x.sqr().and_then(|x| x.mean_all()).map_err(|_| Error)
}

#[sam]
fn text(x: &Tensor) -> Result<Tensor, String> {
    x.sqr().and_then(|x| x.mean_all()).map_err(|error| error.to_string())
}

#[sam(shards(x; m = 32))]
fn in_shards(x: &Tensor) -> Result<Tensor, Error> {
    x.sqr().and_then(|x| x.mean_all()).map_err(|_| Error)
}

fn main() {}
