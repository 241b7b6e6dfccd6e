// Input
//
//     #[sam(with = sam, parts(ids, labels; m = 8, weights = &tokens(&labels)?))]
//     fn loss(sam: &Sam, model: &Net, ids: &Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
//         let logits = model.forward(ids)?;
//         Ok((cross_entropy(&logits, &labels)?, logits))
//     }
//
// Output

fn loss(
    sam: &Sam,
    model: &Net,
    ids: &Tensor,
    labels: Tensor,
) -> Result<(Tensor, Tensor)> {
    let __sam: &::sam_runtime::Sam = &*sam;
    let __sam_size: ::core::primitive::usize = 8;
    let __sam_examples = ::sam_runtime::Sam::parts(__sam, __sam_size)?;
    let __sam_examples = ::sam_runtime::Examples::weights(
        __sam_examples,
        &(&tokens(&labels)?),
    )?;
    let __sam_held_labels = labels;
    let __sam_examples = ::sam_runtime::Examples::split(__sam_examples, ids)?;
    let __sam_examples = ::sam_runtime::Examples::split(
        __sam_examples,
        &__sam_held_labels,
    )?;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<(Tensor, Tensor)> {
        let ids @ (_) = &::sam_runtime::Examples::of(&__sam_examples, ids)?;
        let labels @ (_) = ::sam_runtime::Examples::of(
            &__sam_examples,
            &__sam_held_labels,
        )?;
        match () {
            () => {
                let logits = model.forward(ids)?;
                Ok((cross_entropy(&logits, &labels)?, logits))
            }
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
