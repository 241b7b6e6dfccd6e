//! The macros of `sam-runtime`: depend on that crate, which re-exports them as `sam_runtime::{sam, Aux, LossOutput}`.
//!
//! # Stages
//!
//! Each stage imports only those before it:
//!
//! | stage | files |
//! | --- | --- |
//! | the table of keys, the list of errors | `keys.rs`, `errors.rs` |
//! | parse the attribute | `args.rs` |
//! | parse the function | `function.rs` |
//! | validate | `validate.rs`, with `optimizer_step.rs` |
//! | expand | `expand.rs`, with `rebind.rs` for the arguments; `plain.rs` for the function without SAM |
//! | all of them | `rewrite.rs` |
//!
//! **Parsing never judges, validation never emits, expansion never fails.** What parses may still be wrong.
//! Validation alone decides, and collects all errors, so that they are reported at once. What it lets pass can be
//! expanded without another question. What it refuses is emitted as written, next to the errors, so that an editor
//! still knows the function.

mod args;
mod derive;
mod errors;
mod expand;
mod function;
mod keys;
mod optimizer_step;
mod plain;
mod rebind;
mod rewrite;
#[cfg(test)]
mod tests;
mod validate;

/// Turns a loss function into one with the gradient of Sharpness-Aware Minimization: same name, same arguments, same
/// value.
///
/// With L the loss, w the variables and g the gradient of L at w, `loss(..)?.backward()?` then gives the gradient of
/// L at w + ε instead of g, where ε = ρ g / ‖g‖ is the perturbation of length ρ that increases the loss most.
///
/// ```ignore
/// /// Cross-entropy of one batch.
/// #[sam(rho = 0.05)]
/// fn loss(model: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
///     candle_nn::loss::cross_entropy(&model.forward_t(x, true)?, y)
/// }
///
/// opt.backward_step(&loss(&model, &x, &y)?)?; // the training loop does not change
/// ```
///
/// # Keys
///
/// `#[sam]` without keys is SAM as published. Every expression is evaluated once per call, before the first pass, and
/// may use the function's arguments: `rho = schedule(step)`.
///
/// | key | default | meaning |
/// | --- | --- | --- |
/// | `rho = 0.05` | 0.05 | radius ρ of the perturbation |
/// | `p = 2`, `p = inf` | 2 | norm of the radius, 1 ≤ p ≤ ∞ |
/// | `adaptive`, `adaptive = 0.01` | off | ASAM: the perturbation is scaled by abs(w) + η; without a value, η = 0.01 |
/// | `unnormalized` | off | USAM: no normalization, ε = ρ g; does not use a norm |
/// | `gsam = 0.4` | off | GSAM: subtracts α times the part of g that is orthogonal to the gradient at w + ε |
/// | `wsam = 0.9` | off | WSAM: weights the sharpness by γ / (1 - γ), 0 ≤ γ < 1 |
/// | `stable` | off | Stable SAM: rescales the gradient at w + ε to the length of g |
/// | `second_order` | off | SAM with the second-order term that the paper drops; only for the Euclidean ball |
/// | `vars = model.vars()` | all that the loss depends on | variables to perturb |
/// | `buffers = [mean.clone(), var.clone()]` | none | variables that keep the value that the first pass gave them: the running statistics of a batch normalization |
/// | `all_reduce = world` | one process | data-parallel training: the gradient is the mean over the ranks of this `&Comm`, each with its own ε on its own samples |
/// | `ascent = synchronized` | `per_rank` | with `all_reduce`: one ε for the samples of all ranks, at the price of a second all-reduce |
/// | `replay(rng)` | none | arguments whose state is rewound before the second pass, e.g. a random number generator |
/// | `shards(x, y; m = 32)` | the whole batch | m-sharpness: splits these arguments along dimension 0 into shards of m samples, each with its own ε |
/// | `micro_batches(x, y; m = 32)` | the whole batch | gradient accumulation: each pass takes these arguments in micro-batches of m samples, for one ε |
/// | `hardest(x, y; k = 32)` | the whole batch | K-SAM: both gradients are those of the k samples with the largest loss; the function must return one loss per sample |
/// | `sharpest(x, y; k = 64)` | the whole batch | ESAM: the second gradient is that of the k samples whose loss increases most; the function must return one loss per sample |
/// | `plain = plain_loss` | none | also emits the original function under this name, for evaluation |
/// | `with = sam` | none | name of the argument that carries the configuration, of type `&Sam` or `&mut Sam`; replaces the keys from `rho` to `ascent` |
/// | `crate = ::sam_runtime` | `::sam_runtime` | path of the runtime, if it is re-exported |
///
/// Of `gsam`, `wsam`, `stable` and `second_order` a function can have one, and one of `shards`, `micro_batches`,
/// `hardest` and `sharpest`.
///
/// ## Losses that are not a mean over samples
///
/// The losses and gradients of shards and micro-batches are averaged, weighted by their numbers of samples. That is
/// right for a loss that is a mean over samples. For another loss, add an option after `m`:
///
/// | loss | option |
/// | --- | --- |
/// | mean over samples | none, or `reduction = mean` |
/// | sum over samples | `reduction = sum` |
/// | mean over tokens, or any weighted mean | `weights = EXPR`, one weight per sample, e.g. its number of tokens |
///
/// For example `micro_batches(ids, labels; m = 8, weights = &lengths)`. A loss that is averaged over tokens then has
/// the same value and gradient in micro-batches as for the whole batch.
///
/// ## Batch normalization, dropout and other state
///
/// The layers of `sam_runtime::nn` need no key. Of candle's own, `BatchNorm` needs `buffers`, or its running
/// statistics are updated by both passes.
///
/// `replay(rng)` gives the second pass a clone of the argument from before the first pass. So a clone must have its
/// own state, as that of a seeded generator (`rng: &mut StdRng`) or of a `RefCell`. A clone of an `Arc`, an `Rc`, a
/// `ThreadRng` or a reference shares its state and is refused: at compile time if the type shows it, otherwise when
/// the function is called. Such a type inside another one is not detected, and both passes then draw different
/// numbers.
///
/// Candle's dropout (`candle_nn::Dropout`, `candle_nn::ops::dropout`) and `Tensor::randn` on the CPU use a generator
/// that is not an argument, so `replay` cannot rewind it. Use `sam_runtime::nn::Dropout`, which draws the same masks
/// in both passes, or draw the noise from a generator that is an argument.
///
/// # Expansion
///
/// The stages of the algorithm, one call each:
///
/// ```ignore
/// fn loss(model: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
///     let sam = ::sam_runtime::Sam::new(0.05);
///     let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
///         candle_nn::loss::cross_entropy(&model.forward_t(x, true)?, y)
///     };
///     let ascent = sam.ascend(&mut body)?; // L(w) and its gradient
///     let perturbed = ascent.perturb()?; // w ← w + ε
///     let descent = perturbed.descend(&mut body)?; // the gradient at w + ε
///     let loss = descent.restore(); // w ← w, and the loss with that gradient
///     loss
/// }
/// ```
///
/// In the real expansion names begin with `__sam` and functions are called by their paths, so that it compiles next
/// to any names, traits and lints, in the editions 2018, 2021 and 2024. `cargo expand` shows it.
///
/// The body becomes a closure that runs twice. Each pass begins with the caller's arguments:
///
/// | argument | in each pass |
/// | --- | --- |
/// | `x: &T` | passed as it is |
/// | `x: &mut T` | reborrowed; what a pass changes stays changed, unless the argument is in `replay` |
/// | `x: T`, `mut x: T`, `ref x: T`, a name in a pattern | cloned, so the body can consume or change it |
///
/// A `return` or a `?` ends the pass, and with an error the call. The weights are restored in any case.
///
/// # Limits
///
/// - `T: Clone` for arguments by value and in `replay`. Bindings of destructuring patterns are cloned for each pass
///   too, so they cannot be `&mut`: instead of `(a, b): (&mut A, B)` take two arguments.
/// - `self` must be a reference. The function cannot be `async`, `const`, `extern` or variadic, and must have a body.
/// - It returns `Result<Tensor, E>`, `Result<(Tensor, ..), E>` or a `Result` of a struct that derives
///   `sam_runtime::LossOutput`, with any `E: From<candle_core::Error>`. Values next to the loss implement
///   `sam_runtime::Aux`.
/// - It computes the loss and nothing more: the optimizer's step stays outside. A function that takes an optimizer
///   and uses it, or that calls `backward_step`, is refused.
/// - The arguments of `shards` and of the other three keys for batches must appear in the body, and not only in a
///   format string or an included file.
/// - Everything else that the body does, such as printing, it does twice.
///
/// Within these limits it may be a free function, a method or an associated function, also in traits and their
/// implementations; generic, `unsafe`, with patterns and with `impl Trait`. Other attributes may be above and below.
///
/// A wrong attribute is a compile error at the wrong token that says what to write. All errors are reported at once.
///
/// # Cost
///
/// `cargo check` takes half a second longer for 200 functions with the attribute than for the same functions without
/// it: 1.0 s and 0.6 s without incremental compilation, on two busy cores of an AMD EPYC (0.2 to 0.9 s in eight
/// runs). `cargo test --release -p sam-tests --test check_time -- --nocapture` measures it, and fails at two seconds.
#[proc_macro_attribute]
pub fn sam(args: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    rewrite::rewrite(args.into(), item.into()).into()
}

/// Implements `sam_runtime::Aux` for a struct or an enum: a value that a loss function returns next to its loss.
///
/// Every field must be `Aux`, and every type parameter is bounded by it. Over several shards each field of a struct
/// is joined as its type is. An enum cannot be joined, which is an error at run time. Unions are refused.
///
/// `#[aux(crate = ::path)]` gives the path of the runtime, if it is re-exported.
#[proc_macro_derive(Aux, attributes(aux))]
pub fn derive_aux(item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    derive::aux(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Implements `sam_runtime::LossOutput` for a struct that a loss function returns: the loss and other values.
///
/// The loss is the field `loss`, or the first field of a tuple struct, and is a `Tensor`. All other fields must be
/// `Aux`, and every type parameter is bounded by it. Enums and unions are refused.
///
/// `#[aux(crate = ::path)]` gives the path of the runtime, if it is re-exported.
#[proc_macro_derive(LossOutput, attributes(aux))]
pub fn derive_loss_output(item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    derive::loss_output(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
