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
    let sam = ::sam_runtime::Sam::new(self.rho);
    let mut body = |_: ::sam_runtime::Pass| -> Result<(Tensor, _), M::Error> {
        self.calls += 1;
        let logits = model.logits(x)?;
        Ok((logits.mean_all()?, logits))
    };
    sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore()
}
