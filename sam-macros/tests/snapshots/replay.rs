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
    let __sam = ::sam_runtime::Sam::new(::sam_runtime::Sam::DEFAULT_RHO);
    let __sam = ::sam_runtime::Sam::p(__sam, 1.5);
    let __sam = ::sam_runtime::Sam::adaptive(__sam, 0.1);
    let mut __sam_held_rng = ::sam_runtime::__private::Replay::new(rng)?;
    let mut __sam_held_dropout = ::sam_runtime::__private::ReplayRef::new(dropout)?;
    let __sam_held_seed = ::sam_runtime::__private::replayed(seed)?;
    let mut __sam_body = |__sam_pass: ::sam_runtime::Pass| -> Result<Tensor> {
        let rng @ (_) = ::sam_runtime::__private::Replay::for_pass(
            &mut __sam_held_rng,
            __sam_pass,
        );
        let mut dropout @ (_) = ::sam_runtime::__private::ReplayRef::for_pass(
            &mut __sam_held_dropout,
            __sam_pass,
        );
        let mut seed @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_seed);
        match () {
            () => {
                seed += 1;
                dropout.forward(&model.forward(x, rng, seed)?)
            }
        }
    };
    let __sam_ascent = ::sam_runtime::Sam::ascend(&__sam, &mut __sam_body)?;
    let __sam_perturbed = ::sam_runtime::Ascent::perturb(__sam_ascent)?;
    let __sam_descent = ::sam_runtime::Perturbed::descend(
        __sam_perturbed,
        &mut __sam_body,
    )?;
    let __sam_loss = ::sam_runtime::Descent::restore(__sam_descent);
    __sam_loss
}
