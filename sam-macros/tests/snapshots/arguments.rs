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
    let sam = ::sam_runtime::Sam::new(radius(step));
    let held_x = x;
    let held_logits = logits;
    let held_y = y;
    let held_mask = mask;
    #[cfg(feature = "cuda")]
    let held_stream = stream;
    let held_f = f;
    let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        #[allow(clippy::shadow_unrelated)]
        let mut x = ::sam_runtime::argument::again(&held_x);
        #[allow(clippy::shadow_unrelated)]
        let logits = ::sam_runtime::argument::again(&held_logits);
        #[allow(clippy::shadow_unrelated)]
        let mut y = ::sam_runtime::argument::again(&held_y);
        #[allow(clippy::shadow_unrelated)]
        let mask = ::sam_runtime::argument::again(&held_mask);
        #[allow(clippy::shadow_same)]
        let mut best = best;
        #[allow(clippy::shadow_same)]
        let rng = &mut *rng;
        #[cfg(feature = "cuda")]
        #[allow(clippy::shadow_unrelated)]
        let stream = ::sam_runtime::argument::again(&held_stream);
        #[allow(clippy::shadow_unrelated)]
        let f = ::sam_runtime::argument::again(&held_f);
        {
            x = f(&x)?;
            y = mask.where_cond(&y, &logits)?;
            if rng.random() {
                best = &x;
            }
            #[cfg(feature = "cuda")] stream.wait()?;
            best.sub(&y)?.sqr()?.mean_all()
        }
    };
    sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore()
}
