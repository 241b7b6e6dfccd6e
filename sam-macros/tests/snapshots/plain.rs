// Input
//
//     #[sam(rho = rho, plain = plain_loss)]
//     /// Mean squared error of one batch.
//     ///
//     /// # Errors
//     ///
//     /// If the shapes differ.
//     #[cfg_attr(docsrs, doc = "Nightly.", must_use)]
//     #[inline]
//     pub fn loss(x: &Tensor, mut y: Tensor, rho: f64) -> Result<Tensor> {
//         y = (x - y)?;
//         y.sqr()?.mean_all()
//     }
//
// Output

/// Mean squared error of one batch.
///
/// # Errors
///
/// If the shapes differ.
#[cfg_attr(docsrs, doc = "Nightly.", must_use)]
#[inline]
pub fn loss(x: &Tensor, y: Tensor, rho: f64) -> Result<Tensor> {
    let sam = ::sam_runtime::Sam::new(rho);
    let held_y = y;
    let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        #[allow(clippy::shadow_unrelated)]
        let mut y = ::sam_runtime::argument::again(&held_y);
        {
            y = (x - y)?;
            y.sqr()?.mean_all()
        }
    };
    sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore()
}
/// `loss` without SAM: the function as it was written.
///
/// # Errors
///
/// As `loss`.
///
/// # Panics
///
/// As `loss`.
#[allow(unused_variables)]
#[cfg_attr(docsrs, must_use)]
#[inline]
pub fn plain_loss(x: &Tensor, mut y: Tensor, rho: f64) -> Result<Tensor> {
    y = (x - y)?;
    y.sqr()?.mean_all()
}
