// Input
//
//     #[sam(p = 1.5, adaptive = 0.1, replay(rng, dropout, seed))]
//     fn loss(model: &Net, x: &Tensor, rng: &mut Rng, mut dropout: &Dropout, mut seed: u64) -> Result<Tensor> {
//         seed += 1;
//         dropout.forward(&model.forward(x, rng, seed)?)
//     }
//
// Output

fn loss(
    model: &Net,
    x: &Tensor,
    rng: &mut Rng,
    dropout: &Dropout,
    seed: u64,
) -> Result<Tensor> {
    let sam = ::sam_runtime::Sam::new(::sam_runtime::Sam::RHO).p(1.5).adaptive(0.1);
    let mut held_rng = ::sam_runtime::argument::Replay::new(rng);
    let mut held_dropout = ::sam_runtime::argument::ReplayRef::new(dropout);
    let held_seed = seed;
    let mut body = |pass: ::sam_runtime::Pass| -> Result<Tensor> {
        #[allow(clippy::shadow_unrelated)]
        let rng = held_rng.turn(pass);
        #[allow(clippy::shadow_unrelated)]
        let mut dropout = held_dropout.turn(pass);
        #[allow(clippy::shadow_unrelated)]
        let mut seed = ::sam_runtime::argument::again(&held_seed);
        {
            seed += 1;
            dropout.forward(&model.forward(x, rng, seed)?)
        }
    };
    sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore()
}
