// Input
//
//     #[sam(all_reduce = world, ascent = synchronized)]
//     fn loss(model: &Net, x: &Tensor, world: &Comm) -> Result<Tensor> {
//         model.forward(x)?.mean_all()
//     }
//
// Output

fn loss(model: &Net, x: &Tensor, world: &Comm) -> Result<Tensor> {
    let __sam = ::sam_runtime::Sam::new(::sam_runtime::Sam::DEFAULT_RHO);
    let __sam = ::sam_runtime::Sam::all_reduce(__sam, world);
    let __sam = ::sam_runtime::Sam::synchronized_ascent(__sam);
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        model.forward(x)?.mean_all()
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
