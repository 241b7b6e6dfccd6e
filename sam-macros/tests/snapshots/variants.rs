// Input
//
//     #[sam(rho = 0.2, gsam = alpha, unnormalised, hardest(x, y; k = x.dim(0)? / 3))]
//     fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
//         cross_entropies(&model.forward(x)?, &y)
//     }
//
// Output

fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
    let __sam = ::sam_runtime::Sam::new(0.2);
    let __sam = ::sam_runtime::Sam::unnormalised(__sam);
    let __sam = ::sam_runtime::Sam::combination(
        __sam,
        ::sam_runtime::variants::Combination::Gsam {
            alpha: <::core::primitive::f64 as ::core::convert::From<_>>::from(alpha),
        },
    );
    let __sam_size: ::core::primitive::usize = x.dim(0)? / 3;
    let __sam_examples = ::sam_runtime::Sam::hardest(&__sam, __sam_size)?;
    let __sam_held_y = y;
    let __sam_examples = ::sam_runtime::Examples::split(__sam_examples, x)?;
    let __sam_examples = ::sam_runtime::Examples::split(__sam_examples, &__sam_held_y)?;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        let x @ (_) = &::sam_runtime::Examples::of(&__sam_examples, x)?;
        let y @ (_) = ::sam_runtime::Examples::of(&__sam_examples, &__sam_held_y)?;
        match () {
            () => cross_entropies(&model.forward(x)?, &y),
        }
    };
    let __sam_ascent = ::sam_runtime::Examples::ascend(
        &__sam_examples,
        &mut __sam_body,
    )?;
    let __sam_perturbed = ::sam_runtime::Ascent::perturb(__sam_ascent)?;
    let __sam_descent = ::sam_runtime::Perturbed::descend(
        __sam_perturbed,
        &mut __sam_body,
    )?;
    let __sam_loss = ::sam_runtime::Descent::restore(__sam_descent);
    __sam_loss
}
