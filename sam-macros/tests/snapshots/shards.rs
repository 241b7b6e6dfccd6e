// Input
//
//     #[sam(with = config, shards(x, y, weight; m = y.dim(0)?.div_ceil(4)))]
//     fn loss(config: &mut Sam, model: &Net, x: &Tensor, mut y: Tensor, weight: Tensor, scale: Tensor) -> Result<Tensor> {
//         y = (y * &scale)?;
//         model.forward(x)?.sub(&y)?.sqr()?.mul(&weight)?.mean_all()
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
    let __sam: &::sam_runtime::Sam = &*config;
    let __sam_size: ::core::primitive::usize = y.dim(0)?.div_ceil(4);
    let __sam_shards = ::sam_runtime::Sam::shards(__sam, __sam_size)?;
    let __sam_held_y = y;
    let __sam_held_weight = weight;
    let __sam_held_scale = scale;
    let __sam_shards = ::sam_runtime::Shards::split(__sam_shards, x)?;
    let __sam_shards = ::sam_runtime::Shards::split(__sam_shards, &__sam_held_y)?;
    let __sam_shards = ::sam_runtime::Shards::split(__sam_shards, &__sam_held_weight)?;
    let mut __sam_shards = __sam_shards;
    while let ::core::option::Option::Some(__sam_shard) = ::sam_runtime::Shards::next_shard(
        &mut __sam_shards,
    ) {
        let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
            let x @ (_) = &::sam_runtime::Shard::of(&__sam_shard, x)?;
            let mut y @ (_) = ::sam_runtime::Shard::of(&__sam_shard, &__sam_held_y)?;
            let weight @ (_) = ::sam_runtime::Shard::of(
                &__sam_shard,
                &__sam_held_weight,
            )?;
            let scale @ (_) = ::sam_runtime::__private::clone_for_pass(
                &__sam_held_scale,
            );
            match () {
                () => {
                    y = (y * &scale)?;
                    model.forward(x)?.sub(&y)?.sqr()?.mul(&weight)?.mean_all()
                }
            }
        };
        let __sam_ascent = ::sam_runtime::Sam::ascend(__sam, &mut __sam_body)?;
        let __sam_perturbed = ::sam_runtime::Ascent::perturb(__sam_ascent)?;
        let __sam_descent = ::sam_runtime::Perturbed::descend(
            __sam_perturbed,
            &mut __sam_body,
        )?;
        ::sam_runtime::Descent::restore_into(__sam_descent, &mut __sam_shards)?;
    }
    let __sam_loss = ::sam_runtime::Shards::loss(__sam_shards);
    __sam_loss
}
