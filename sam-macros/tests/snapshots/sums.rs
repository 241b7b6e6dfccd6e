// Input
//
//     #[sam(shards(x; m = 32, reduction = sum))]
//     fn loss(model: &Net, x: &Tensor) -> Result<Tensor> {
//         model.forward(x)?.sum_all()
//     }
//
// Output

fn loss(model: &Net, x: &Tensor) -> Result<Tensor> {
    let __sam = ::sam_runtime::Sam::new(::sam_runtime::Sam::DEFAULT_RHO);
    let __sam_size: ::core::primitive::usize = 32;
    let __sam_shards = ::sam_runtime::Sam::shards(&__sam, __sam_size)?;
    let __sam_shards = ::sam_runtime::Shards::sum(__sam_shards);
    let __sam_shards = ::sam_runtime::Shards::split(__sam_shards, x)?;
    let mut __sam_shards = __sam_shards;
    while let ::core::option::Option::Some(__sam_shard) = ::sam_runtime::Shards::next_shard(
        &mut __sam_shards,
    ) {
        let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
            let x @ (_) = &::sam_runtime::Shard::of(&__sam_shard, x)?;
            match () {
                () => model.forward(x)?.sum_all(),
            }
        };
        let __sam_ascent = ::sam_runtime::Sam::ascend(&__sam, &mut __sam_body)?;
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
