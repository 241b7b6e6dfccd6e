// Input
//
//     #[sam(
//         rho = 0.05, p = inf, adaptive, vars = model.vars(), replay(rng), shards(x; m = 32),
//         plain = plain_loss, crate = ::facade::sam,
//     )]
//     fn loss(model: &Net, x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
//         model.forward(x, rng)?.mean_all()
//     }
//
// Output

fn loss(model: &Net, x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    let sam = ::facade::sam::Sam::new(0.05)
        .p(::core::primitive::f64::INFINITY)
        .adaptive(::facade::sam::Sam::ETA)
        .vars(model.vars());
    let m: ::core::primitive::usize = 32;
    let mut held_rng = ::facade::sam::argument::Replay::new(rng);
    let mut shards = sam.shards(m)?.split(x)?;
    while let ::core::option::Option::Some(shard) = shards.next_shard() {
        let mut body = |pass: ::facade::sam::Pass| -> Result<Tensor> {
            #[allow(clippy::shadow_reuse)]
            let x = &shard.of(x)?;
            #[allow(clippy::shadow_unrelated)]
            let rng = held_rng.turn(pass);
            { model.forward(x, rng)?.mean_all() }
        };
        sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore_into(&mut shards)?;
    }
    shards.loss()
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
