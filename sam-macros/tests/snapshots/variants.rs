// Input
//
//     #[sam(rho = 0.2, gsam = alpha, unnormalized, hardest(x, y; k = x.dim(0)? / 3))]
//     fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
//         cross_entropies(&model.forward(x)?, &y)
//     }
//
// Output

fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
    let __sam = ::sam_runtime::Sam::new(0.2);
    let __sam = ::sam_runtime::Sam::unnormalized(__sam);
    let __sam = ::sam_runtime::Sam::combination(
        __sam,
        ::sam_runtime::variants::Combination::Gsam {
            alpha: <::core::primitive::f64 as ::core::convert::From<_>>::from(alpha),
        },
    );
    let __sam_size: ::core::primitive::usize = x.dim(0)? / 3;
    let __sam_selection = ::sam_runtime::Sam::hardest(&__sam, __sam_size)?;
    let __sam_held_y = y;
    let __sam_selection = ::sam_runtime::BatchSelection::split(__sam_selection, x)?;
    let __sam_selection = ::sam_runtime::BatchSelection::split(
        __sam_selection,
        &__sam_held_y,
    )?;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        let x @ (_) = &::sam_runtime::BatchSelection::of(&__sam_selection, x)?;
        let y @ (_) = ::sam_runtime::BatchSelection::of(
            &__sam_selection,
            &__sam_held_y,
        )?;
        match () {
            () => cross_entropies(&model.forward(x)?, &y),
        }
    };
    let __sam_ascent = ::sam_runtime::BatchSelection::ascend(
        &__sam_selection,
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
