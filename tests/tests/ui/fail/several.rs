use candle_core::Tensor;
use sam_runtime::sam;

struct Net;

impl Net {
    #[sam(
        rho = -1,
        norm = 2,
        p,
        adaptive = "yes",
        replay(rng),
        shards(x; m = 0),
        plain = loss,
        crate = sam_runtime,
    )]
    async fn loss(self, x: &Tensor) -> Tensor {
        x.clone()
    }
}

fn main() {}
