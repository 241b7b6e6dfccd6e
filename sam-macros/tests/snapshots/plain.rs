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
    let __sam = ::sam_runtime::Sam::new(rho);
    let __sam_held_y = y;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        let mut y @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_y);
        match () {
            () => {
                y = (x - y)?;
                y.sqr()?.mean_all()
            }
        }
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
/// `loss` without SAM: the function as it was written.
///
/// # Errors
///
/// As `loss`.
///
/// # Panics
///
/// As `loss`.
#[cfg_attr(docsrs, must_use)]
#[inline]
pub fn plain_loss(x: &Tensor, mut y: Tensor, rho: f64) -> Result<Tensor> {
    y = (x - y)?;
    y.sqr()?.mean_all()
}
