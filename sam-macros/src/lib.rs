//! The macros of `sam-runtime`, which re-exports them as `sam_runtime::{sam, Aux, Output}`: depend on that crate, not on
//! this one.

mod args;
mod derive;
mod errors;
mod expand;
mod function;
mod optimizer_step;
mod plain;
mod rebind;
mod rewrite;
#[cfg(test)]
mod tests;
mod validate;

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
/// opt.backward_step(&loss(&model, &x, &y)?)?; // the training loop does not change
/// ```
///
/// # Keys
///
/// | key | default | meaning |
/// | --- | --- | --- |
/// | `rho = EXPR` | 0.05 | radius of the ball |
/// | `p = EXPR`, `p = inf` | 2 | norm of the ball, 1 ≤ p ≤ ∞ |
/// | `adaptive`, `adaptive = ETA` | off | ASAM: the ball is scaled by abs(w) + η; without a value, η = 0.01 |
/// | `unnormalised` | off | USAM: ε = ρ g, for p = 2 |
/// | `gsam = α`, `wsam = γ`, `stable`, `second_order` | the gradient at w + ε | how the gradients at w and at w + ε are combined: GSAM, WSAM, Stable SAM, SAM with the term that the paper drops |
/// | `vars = EXPR` | all that L depends on | the variables to perturb; of those in the list, the ones that get no gradient (running statistics) keep the value of the first pass |
/// | `replay(a, ..)` | none | arguments whose state is the same at the beginning of both passes: a seeded generator, a counter |
/// | `shards(x, ..; m = EXPR)` | whole batch | m-sharpness: these arguments are split along dimension 0 into shards of m examples, each with an ε of its own |
/// | `parts(x, ..; m = EXPR)` | whole batch | gradient accumulation: each pass takes these arguments in parts of m examples, for one ε |
/// | `hardest(x, ..; k = EXPR)` | whole batch | K-SAM: both gradients on the k examples with the largest loss; the function returns one loss per example |
/// | `sharpest(x, ..; k = EXPR)` | whole batch | ESAM: the second gradient on the k examples whose loss rises most; the function returns one loss per example |
/// | `plain = NAME` | none | also emit the original function under this name |
/// | `with = ARG` | none | the argument of type `&Sam` or `&mut Sam` that carries the configuration; it replaces the keys from `rho` to `vars` |
/// | `crate = ::PATH` | `::sam_runtime` | path of the runtime, if it is re-exported |
///
/// Every expression is evaluated once a call, before the first pass, and may use the arguments: `rho = schedule(step)`.
/// Without any key, `#[sam]` is SAM as published.
///
/// ## Losses that are not a mean over examples
///
/// Losses and gradients of shards and parts are averaged, each with the number of its examples as weight. That is right for
/// a loss that is a mean over examples. For other losses, say so after `m`:
///
/// | loss | key |
/// | --- | --- |
/// | mean over examples | `shards(x, y; m = 32)`, or `reduction = mean` after it |
/// | sum over examples | `shards(x, y; m = 32, reduction = sum)` |
/// | mean over tokens, or any weighted mean | `shards(x, y; m = 32, weights = EXPR)`, with one weight per example: the number of its tokens |
///
/// `parts` takes the same. Where the loss is averaged over tokens that count, a loss in parts then equals that of the whole batch.
///
/// ## What `replay` can do
///
/// The second pass finds a replayed argument as it was before the first pass: it works with a clone. So a clone has to have a
/// state of its own, like that of a seeded generator (`rng: &mut StdRng`) or of a `RefCell`. A clone of an `Arc`, an `Rc`, a
/// `ThreadRng` or a reference shares its state, and is refused: at compile time if the type says so, otherwise when the
/// function is called. A handle inside another type cannot be seen, and both passes then draw different numbers.
///
/// Dropout of candle (`candle_nn::Dropout`, `candle_nn::ops::dropout`) and `Tensor::randn` on the CPU take their numbers
/// from a generator that no argument holds, so `replay` does nothing for them. Use `sam_runtime::nn::Dropout`, which draws the
/// same masks in both passes, or make the noise with a generator that is an argument.
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
///     let ascent = sam.ascend(&mut body)?; // L(w) and its gradient
///     let perturbed = ascent.perturb()?; // w ← w + ε
///     let descent = perturbed.descend(&mut body)?; // the gradient at w + ε
///     let loss = descent.restore(); // w ← w, and the loss that has this gradient
///     loss
/// }
/// ```
///
/// In the real expansion names begin with `__sam` and functions are called by their paths, so that it compiles next to any
/// names, traits and lints, in the editions 2018, 2021 and 2024.
///
/// The body becomes a closure that runs twice. Each pass begins with the caller's arguments: `&T` arguments are passed as
/// they are, `&mut T` arguments are reborrowed for each pass, and what the function owns is cloned for each pass: arguments
/// by value, names in patterns, names bound by `ref` and `ref mut`. So the body can consume or change them. What a pass changes
/// behind a `&mut T` argument stays changed, unless the argument is in `replay`. A `return` or a `?` leaves the pass, and with
/// an error the call; the weights are restored in any case.
///
/// # Where it goes
///
/// On the function that computes the loss, not on the training step: the optimizer stays outside. It may be a free
/// function, a method with `&self` or `&mut self` or an associated function, also in traits and their implementations;
/// generic, `unsafe`, with patterns and with `impl Trait` for arguments. Other attributes may be above and below. The function
/// returns `Result<Tensor, E>`, `Result<(Tensor, ..), E>` or a `Result` of a struct that derives `sam_runtime::Output`,
/// with any `E` that is `From<candle_core::Error>`.
///
/// Refused, each with an error that says what to write instead: `self` by value, `async`, `const`, `extern` and
/// variadic functions, those without a body and those without a `Result`; functions that take an optimizer or call
/// `backward_step`; keys that are unknown, given twice, in conflict with each other or out of range; names that are not
/// arguments, and arguments to split that the body does not use.
///
/// # Cost
///
/// `cargo check` takes half a second longer for 200 functions with the attribute than for the same without it: 1.0 s and
/// 0.6 s, nothing incremental, on two busy cores of an AMD EPYC (0.2 to 0.9 s in eight runs).
/// `cargo test --release -p sam-tests --test check_time -- --nocapture` measures it, and fails at two seconds.
#[proc_macro_attribute]
pub fn sam(args: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    rewrite::rewrite(args.into(), item.into()).into()
}

/// Implements `sam_runtime::Aux` for a struct or an enum whose fields are `Aux`: a value that a loss function returns next
/// to its loss.
///
/// Over shards, each field of a struct is joined as its type is; an enum has no value for several shards, which is an
/// error. `#[aux(crate = ::path)]` says where the runtime is, if it is re-exported.
#[proc_macro_derive(Aux, attributes(aux))]
pub fn derive_aux(item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    derive::aux(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Implements `sam_runtime::Output` for a struct that a loss function returns.
///
/// The field with the loss is `loss`, or the first of a tuple struct, and is a `Tensor`. All others are `Aux`.
/// `#[aux(crate = ::path)]` says where the runtime is, if it is re-exported.
#[proc_macro_derive(Output, attributes(aux))]
pub fn derive_output(item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    derive::output(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
