// Input
//
//     #[sam(rho = -1, norm = 2)]
//     /// The item stays as it is.
//     async fn loss(model: &Net, mut x: Tensor) -> Tensor {
//         model.forward(&x).await
//     }
//
// Output

/// The item stays as it is.
async fn loss(model: &Net, mut x: Tensor) -> Tensor {
    model.forward(&x).await
}
::core::compile_error! {
    "unknown key `norm`: expected one of `rho`, `p`, `adaptive`, `unnormalised`, `gsam`, `wsam`, `stable`, `second_order`, `vars`, `replay`, `shards`, `parts`, `hardest`, `sharpest`, `plain`, `with`, `crate`"
}
::core::compile_error! {
    "`rho` is a radius: expected a number of at least 0"
}
::core::compile_error! {
    "a loss cannot be `async`: await first, and pass what comes of it as an argument"
}
::core::compile_error! {
    "a loss returns a `Result`: write `-> Result<Tensor>`"
}
