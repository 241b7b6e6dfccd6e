// Input
//
//     #[sam(with = sam, micro_batches(ids, labels; m = 8, weights = &tokens(&labels)?))]
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
    let __sam_selection = ::sam_runtime::Sam::micro_batches(__sam, __sam_size)?;
    let __sam_selection = ::sam_runtime::BatchSelection::weights(
        __sam_selection,
        &(&tokens(&labels)?),
    )?;
    let __sam_held_labels = labels;
    let __sam_selection = ::sam_runtime::BatchSelection::split(__sam_selection, ids)?;
    let __sam_selection = ::sam_runtime::BatchSelection::split(
        __sam_selection,
        &__sam_held_labels,
    )?;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<(Tensor, Tensor)> {
        let ids @ (_) = &::sam_runtime::BatchSelection::of(&__sam_selection, ids)?;
        let labels @ (_) = ::sam_runtime::BatchSelection::of(
            &__sam_selection,
            &__sam_held_labels,
        )?;
        match () {
            () => {
                let logits = model.forward(ids)?;
                Ok((cross_entropy(&logits, &labels)?, logits))
            }
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
