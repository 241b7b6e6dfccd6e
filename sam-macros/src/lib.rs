//! The attribute of `sam-runtime`, which exports it again as `sam_runtime::sam`: depend on that crate, not on this one.

use proc_macro2::TokenStream;
use quote::quote;

use crate::args::Args;

mod args;
mod expand;
mod item;
#[cfg(test)]
mod tests;
mod valid;

/// Turns a loss function L into L<sup>SAM</sup>(w) = max L(w + ε) over ‖ε‖ₚ ≤ ρ: same name, same arguments, same
/// value; the gradient is that of Sharpness-Aware Minimization.
///
/// ```ignore
/// /// Cross-entropy of one batch.
/// #[sam(rho = 0.05, p = 2)]
/// fn loss(model: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
///     candle_nn::loss::cross_entropy(&model.forward_t(x, true)?, y)
/// }
///
/// opt.backward_step(&loss(&model, &x, &y)?)?; // the loop is what it was
/// ```
///
/// # Keys
///
/// | key | default | meaning |
/// | --- | --- | --- |
/// | `rho = EXPR` | 0.05 | radius of the ball |
/// | `p = EXPR`, `p = inf` | 2 | norm of the ball, 1 ≤ p ≤ ∞ |
/// | `adaptive`, `adaptive = ETA` | off | ASAM: the ball is scaled by abs(w) + η; alone, η = 0.01 |
/// | `unnormalised` | off | ε = ρ g, for p = 2 |
/// | `gsam = α`, `wsam = γ`, `stable`, `second_order` | the gradient at w + ε | what it and the gradient at w come to: GSAM, WSAM, Stable SAM, SAM with the term that the paper drops |
/// | `vars = EXPR` | all that L depends on | the variables to perturb; those that get no gradient are state, and keep that of the first pass |
/// | `replay(a, ..)` | none | arguments that both passes find in the same state: an RNG, a counter |
/// | `shards(x, ..; m = EXPR)` | whole batch | m-sharpness: these are split along dimension 0 into shards of m, each with an ε of its own |
/// | `parts(x, ..; m = EXPR)` | whole batch | gradient accumulation: each pass takes these in parts of m, for one ε |
/// | `hardest(x, ..; k = EXPR)` | whole batch | K-SAM: both gradients on the k examples with the largest loss; the function returns a loss for each |
/// | `sharpest(x, ..; k = EXPR)` | whole batch | ESAM: the second gradient on the k examples whose loss rises most; the function returns a loss for each |
/// | `plain = NAME` | none | also keep the function as it was written, as `NAME` |
/// | `with = ARG` | none | an argument `&Sam` or `&mut Sam` that says all that the keys from `rho` to `vars` say, and more |
/// | `crate = ::PATH` | `::sam_runtime` | where the runtime is, if it is exported again |
///
/// Every expression is evaluated once a call, before the first pass, and sees the arguments: `rho = schedule(step)`.
/// Without any key, `#[sam]` is SAM as published.
///
/// # Expansion
///
/// The algorithm, one call for each of its stages:
///
/// ```ignore
/// fn loss(model: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
///     let sam = ::sam_runtime::Sam::new(0.05).p(2);
///     let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
///         candle_nn::loss::cross_entropy(&model.forward_t(x, true)?, y)
///     };
///     sam.ascend(&mut body)? // L(w) and its gradient
///         .perturb()? // w ← w + ε
///         .descend(&mut body)? // the gradient at w + ε
///         .restore() // w ← w, and the loss that has this gradient
/// }
/// ```
///
/// The body becomes a closure that runs twice. `&T` arguments go into it as they are, `&mut T` ones are reborrowed for
/// each pass, and what is taken by value is cloned for each pass, so that the body can consume or change it. A
/// `return` or a `?` leaves the pass, and with an error the call; the weights are restored in any case.
///
/// # Where it goes
///
/// On free functions, on methods with `&self` or `&mut self` and on associated functions, also in traits and their
/// implementations; generic, `unsafe`, with patterns and with `impl Trait` for arguments. They return `Result<Tensor, E>`
/// or `Result<(Tensor, ..), E>`, with any `E` that is `From<candle_core::Error>`.
///
/// Refused, each with an error that says what to write instead: `self` by value, `async`, `const`, `extern` and
/// variadic functions, those without a body and those without a `Result`; keys that are unknown, given twice, at odds
/// with each other or out of range, and names that are not arguments.
///
/// # Cost
///
/// `cargo check` takes half a second longer for 200 functions with the attribute than for the same without it: 1.0 s and
/// 0.6 s, nothing incremental, on two busy cores of an AMD EPYC (0.2 to 0.9 s in eight runs).
/// `cargo test --release -p sam-tests --test check_time -- --nocapture` measures it, and fails at two seconds.
#[proc_macro_attribute]
pub fn sam(args: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    rewrite(args.into(), item.into()).into()
}

/// Parse, validate, expand. If that fails the item stays, so that an editor still knows it.
fn rewrite(args: TokenStream, item: TokenStream) -> TokenStream {
    match valid::check(Args::read(args), syn::parse2(item.clone())) {
        Ok(loss) => expand::expand(&loss),
        Err(errors) => {
            // What the attribute alone would use is not at fault.
            let quiet = quote!(#[allow(unused_variables)]);
            [quiet, item, errors.into_compile_error()].into_iter().collect()
        }
    }
}
