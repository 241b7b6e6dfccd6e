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
    let sam = ::sam_runtime::Sam::new(::sam_runtime::Sam::RHO);
    let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        let logits = model.forward_t(x, true)?;
        cross_entropy(&logits, y)
    };
    sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore()
}
