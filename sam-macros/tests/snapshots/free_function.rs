// Input
//
//     #[sam]
//     /// Cross-entropy of one batch.
//     pub(crate) fn loss(model: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
//         #![allow(clippy::let_and_return)]
//         let logits = model.forward_t(x, true)?;
//         cross_entropy(&logits, y)
//     }
//
// Output

/// Cross-entropy of one batch.
#[allow(clippy::let_and_return)]
pub(crate) fn loss(model: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let __sam = ::sam_runtime::Sam::new(::sam_runtime::Sam::DEFAULT_RHO);
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        let logits = model.forward_t(x, true)?;
        cross_entropy(&logits, y)
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
