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
    "unknown key `norm`: expected one of `rho`, `p`, `adaptive`, `unnormalized`, `gsam`, `wsam`, `stable`, `second_order`, `vars`, `buffers`, `all_reduce`, `ascent`, `replay`, `shards`, `micro_batches`, `hardest`, `sharpest`, `plain`, `with`, `crate`"
}
::core::compile_error! {
    "`rho` must be a number of at least 0"
}
::core::compile_error! {
    "a loss function cannot be `async`: await first, and pass the result as an argument"
}
::core::compile_error! {
    "a loss function must return a `Result`: write `-> Result<Tensor>`"
}
