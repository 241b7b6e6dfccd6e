// Input
//
//     #[sam(rho = radius(step))]
//     unsafe fn loss(
//         mut x: Tensor,
//         (logits, mut y): (Tensor, Tensor),
//         Batch { mask, .. }: Batch,
//         mut best: &Tensor,
//         rng: &mut Rng,
//         #[cfg(feature = "cuda")] stream: Stream,
//         step: usize,
//         f: impl Fn(&Tensor) -> Result<Tensor> + Clone,
//         unused: Tensor,
//     ) -> Result<Tensor> {
//         x = f(&x)?;
//         y = mask.where_cond(&y, &logits)?;
//         if rng.random() {
//             best = &x;
//         }
//         #[cfg(feature = "cuda")]
//         stream.wait()?;
//         best.sub(&y)?.sqr()?.mean_all()
//     }
//
// Output

unsafe fn loss(
    x: Tensor,
    (logits, y): (Tensor, Tensor),
    Batch { mask, .. }: Batch,
    best: &Tensor,
    rng: &mut Rng,
    #[cfg(feature = "cuda")]
    stream: Stream,
    step: usize,
    f: impl Fn(&Tensor) -> Result<Tensor> + Clone,
    unused: Tensor,
) -> Result<Tensor> {
    let __sam = ::sam_runtime::Sam::new(radius(step));
    let __sam_held_x = x;
    let __sam_held_logits = logits;
    let __sam_held_y = y;
    let __sam_held_mask = mask;
    #[cfg(feature = "cuda")]
    let __sam_held_stream = stream;
    let __sam_held_f = f;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        let mut x @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_x);
        let logits @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_logits);
        let mut y @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_y);
        let mask @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_mask);
        let mut best @ (_) = best;
        let rng @ (_) = &mut *rng;
        #[cfg(feature = "cuda")]
        let stream @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_stream);
        let f @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_f);
        match () {
            () => {
                x = f(&x)?;
                y = mask.where_cond(&y, &logits)?;
                if rng.random() {
                    best = &x;
                }
                #[cfg(feature = "cuda")] stream.wait()?;
                best.sub(&y)?.sqr()?.mean_all()
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
