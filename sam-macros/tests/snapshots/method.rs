// Input
//
//     #[sam(rho = self.rho)]
//     #[inline]
//     pub fn loss<'a, M, const K: usize>(&'a mut self, model: &'a M, x: &Tensor) -> Result<(Tensor, impl Aux + 'a), M::Error>
//     where
//         M: Model<K>,
//     {
//         self.calls += 1;
//         let logits = model.logits(x)?;
//         Ok((logits.mean_all()?, logits))
//     }
//
// Output

#[inline]
pub fn loss<'a, M, const K: usize>(
    &'a mut self,
    model: &'a M,
    x: &Tensor,
) -> Result<(Tensor, impl Aux + 'a), M::Error>
where
    M: Model<K>,
{
    let __sam = ::sam_runtime::Sam::new(self.rho);
    let __sam_error = ::core::marker::PhantomData;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<(Tensor, _), M::Error> {
        self.calls += 1;
        let logits = model.logits(x)?;
        Ok((logits.mean_all()?, logits))
    };
    ::sam_runtime::__private::has_error(&__sam_body, __sam_error);
    let __sam_ascent = ::sam_runtime::Sam::ascend(&__sam, &mut __sam_body)?;
    let __sam_perturbed = ::sam_runtime::Ascent::perturb(__sam_ascent)?;
    let __sam_descent = ::sam_runtime::Perturbed::descend(
        __sam_perturbed,
        &mut __sam_body,
    )?;
    let __sam_loss = ::sam_runtime::Descent::restore(__sam_descent);
    ::sam_runtime::__private::with_error(__sam_loss, __sam_error)
}
