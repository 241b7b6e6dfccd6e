// Input
//
//     #[sam(
//         rho = 0.05, p = inf, adaptive, vars = model.vars(), buffers = model.buffers(), replay(rng), shards(x; m = 32),
//         plain = plain_loss, crate = ::facade::sam,
//     )]
//     fn loss(model: &Net, x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
//         model.forward(x, rng)?.mean_all()
//     }
//
// Output

fn loss(model: &Net, x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    let __sam = ::facade::sam::Sam::new(0.05);
    let __sam = ::facade::sam::Sam::p(__sam, ::core::primitive::f64::INFINITY);
    let __sam = ::facade::sam::Sam::adaptive(__sam, ::facade::sam::Sam::ASAM_ETA);
    let __sam = ::facade::sam::Sam::vars(
        __sam,
        ::facade::sam::__private::variables(model.vars()),
    );
    let __sam = ::facade::sam::Sam::buffers(
        __sam,
        ::facade::sam::__private::variables(model.buffers()),
    );
    let __sam_size: ::core::primitive::usize = 32;
    let __sam_shards = ::facade::sam::Sam::shards(&__sam, __sam_size)?;
    let mut __sam_held_rng = ::facade::sam::__private::Replay::new(rng)?;
    let __sam_shards = ::facade::sam::Shards::split(__sam_shards, x)?;
    let mut __sam_shards = __sam_shards;
    while let ::core::option::Option::Some(__sam_shard) = ::facade::sam::Shards::next_shard(
        &mut __sam_shards,
    ) {
        let mut __sam_body = |__sam_pass: ::facade::sam::Pass| -> Result<Tensor> {
            let x @ (_) = &::facade::sam::Shard::of(&__sam_shard, x)?;
            let rng @ (_) = ::facade::sam::__private::Replay::for_pass(
                &mut __sam_held_rng,
                __sam_pass,
            );
            match () {
                () => model.forward(x, rng)?.mean_all(),
            }
        };
        let __sam_ascent = ::facade::sam::Sam::ascend(&__sam, &mut __sam_body)?;
        let __sam_perturbed = ::facade::sam::Ascent::perturb(__sam_ascent)?;
        let __sam_descent = ::facade::sam::Perturbed::descend(
            __sam_perturbed,
            &mut __sam_body,
        )?;
        ::facade::sam::Descent::restore_into(__sam_descent, &mut __sam_shards)?;
    }
    let __sam_loss = ::facade::sam::Shards::loss(__sam_shards);
    __sam_loss
}
/// `loss` without SAM: the function as it was written.
///
/// # Errors
///
/// As `loss`.
///
/// # Panics
///
/// As `loss`.
fn plain_loss(model: &Net, x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    model.forward(x, rng)?.mean_all()
}
