// Input
//
//     #[sam(rho = 0.2, gsam = alpha, unnormalised, hardest(x, y; k = x.dim(0)? / 3))]
//     fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
//         cross_entropies(&model.forward(x)?, &y)
//     }
//
// Output

fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
    let sam = ::sam_runtime::Sam::new(0.2)
        .unnormalised()
        .combination(::sam_runtime::variants::Combination::Gsam {
            alpha: ::core::primitive::f64::from(alpha),
        });
    let k: ::core::primitive::usize = x.dim(0)? / 3;
    let held_y = y;
    let examples = sam.hardest(k)?.split(x)?.split(&held_y)?;
    let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
        #[allow(clippy::shadow_reuse)]
        let x = &examples.of(x)?;
        #[allow(clippy::shadow_unrelated)]
        let y = examples.of(&held_y)?;
        { cross_entropies(&model.forward(x)?, &y) }
    };
    examples.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore()
}
