// Input
//
//     #[sam(with = config, shards(x, y, weight; m = y.dim(0)?.div_ceil(4)))]
//     fn loss(config: &mut Sam, model: &Net, x: &Tensor, mut y: Tensor, weight: Tensor, scale: Tensor) -> Result<Tensor> {
//         y = (y * &scale)?;
//         model.forward(x)?.sub(&y)?.sqr()?.mean_all()
//     }
//
// Output

fn loss(
    config: &mut Sam,
    model: &Net,
    x: &Tensor,
    y: Tensor,
    weight: Tensor,
    scale: Tensor,
) -> Result<Tensor> {
    let sam: &::sam_runtime::Sam = &*config;
    let m: ::core::primitive::usize = y.dim(0)?.div_ceil(4);
    let held_y = y;
    let held_scale = scale;
    let mut shards = sam.shards(m)?.split(x)?.split(&held_y)?.split(&weight)?;
    while let ::core::option::Option::Some(shard) = shards.next_shard() {
        let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
            #[allow(clippy::shadow_reuse)]
            let x = &shard.of(x)?;
            #[allow(clippy::shadow_unrelated)]
            let mut y = shard.of(&held_y)?;
            #[allow(clippy::shadow_unrelated)]
            let scale = ::sam_runtime::argument::again(&held_scale);
            {
                y = (y * &scale)?;
                model.forward(x)?.sub(&y)?.sqr()?.mean_all()
            }
        };
        sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore_into(&mut shards)?;
    }
    shards.loss()
}
