//! Expansions, as files in `tests/snapshots` (`UPDATE_EXPECT=1` writes them anew), and refusals.

use expect_test::{ExpectFile, expect_file};
use proc_macro2::TokenStream;
use syn::{Meta, Token, bracketed, parse::ParseStream, parse::Parser as _};

use crate::{args::Args, derive, rewrite::rewrite, valid};

/// The arguments of `#[sam]` at the head of the source, and the item below it.
fn split(source: &str) -> (TokenStream, TokenStream) {
    let split = |input: ParseStream<'_>| {
        input.parse::<Token![#]>()?;
        let attr;
        bracketed!(attr in input);
        let args = match attr.parse()? {
            Meta::List(list) => list.tokens,
            _ => TokenStream::new(),
        };
        Ok((args, input.parse()?))
    };
    split.parse_str(source).expect("an attribute and an item")
}

fn check_expansion(source: &str, expected: &ExpectFile) {
    let (args, item) = split(source);
    let output = syn::parse2(rewrite(args, item)).expect("items");
    let input: String = source.trim().lines().map(|line| format!("//     {line}\n").replace("     \n", "\n")).collect();
    expected.assert_eq(&format!("// Input\n//\n{input}//\n// Output\n\n{}", prettyplease::unparse(&output)));
}

#[test]
fn free_function() {
    let source = "
#[sam]
/// Cross-entropy of one batch.
pub(crate) fn loss(model: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    #![allow(clippy::let_and_return)]
    let logits = model.forward_t(x, true)?;
    cross_entropy(&logits, y)
}";
    check_expansion(source, &expect_file!["../tests/snapshots/free_function.rs"]);
}

#[test]
fn method() {
    let source = "
#[sam(rho = self.rho)]
#[inline]
pub fn loss<'a, M, const K: usize>(&'a mut self, model: &'a M, x: &Tensor) -> Result<(Tensor, impl Aux + 'a), M::Error>
where
    M: Model<K>,
{
    self.calls += 1;
    let logits = model.logits(x)?;
    Ok((logits.mean_all()?, logits))
}";
    check_expansion(source, &expect_file!["../tests/snapshots/method.rs"]);
}

#[test]
fn arguments() {
    let source = r#"
#[sam(rho = radius(step))]
unsafe fn loss(
    mut x: Tensor,
    (logits, mut y): (Tensor, Tensor),
    Batch { mask, .. }: Batch,
    mut best: &Tensor,
    rng: &mut Rng,
    #[cfg(feature = "cuda")] stream: Stream,
    step: usize,
    f: impl Fn(&Tensor) -> Result<Tensor> + Clone,
    unused: Tensor,
) -> Result<Tensor> {
    x = f(&x)?;
    y = mask.where_cond(&y, &logits)?;
    if rng.random() {
        best = &x;
    }
    #[cfg(feature = "cuda")]
    stream.wait()?;
    best.sub(&y)?.sqr()?.mean_all()
}"#;
    check_expansion(source, &expect_file!["../tests/snapshots/arguments.rs"]);
}

#[test]
fn every_key() {
    let source = "
#[sam(
    rho = 0.05, p = inf, adaptive, vars = model.vars(), replay(rng), shards(x; m = 32),
    plain = plain_loss, crate = ::facade::sam,
)]
fn loss(model: &Net, x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    model.forward(x, rng)?.mean_all()
}";
    check_expansion(source, &expect_file!["../tests/snapshots/every_key.rs"]);
}

#[test]
fn replay() {
    let source = "
#[sam(p = 1.5, adaptive = 0.1, replay(rng, dropout, seed))]
fn loss(model: &Net, x: &Tensor, rng: &mut Rng, mut dropout: &Dropout, mut seed: u64) -> Result<Tensor> {
    seed += 1;
    dropout.forward(&model.forward(x, rng, seed)?)
}";
    check_expansion(source, &expect_file!["../tests/snapshots/replay.rs"]);
}

#[test]
fn shards() {
    let source = "
#[sam(with = config, shards(x, y, weight; m = y.dim(0)?.div_ceil(4)))]
fn loss(config: &mut Sam, model: &Net, x: &Tensor, mut y: Tensor, weight: Tensor, scale: Tensor) -> Result<Tensor> {
    y = (y * &scale)?;
    model.forward(x)?.sub(&y)?.sqr()?.mul(&weight)?.mean_all()
}";
    check_expansion(source, &expect_file!["../tests/snapshots/shards.rs"]);
}

#[test]
fn variants() {
    let source = "
#[sam(rho = 0.2, gsam = alpha, unnormalized, hardest(x, y; k = x.dim(0)? / 3))]
fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
    cross_entropies(&model.forward(x)?, &y)
}";
    check_expansion(source, &expect_file!["../tests/snapshots/variants.rs"]);
}

#[test]
fn sums() {
    let source = "
#[sam(shards(x; m = 32, reduction = sum))]
fn loss(model: &Net, x: &Tensor) -> Result<Tensor> {
    model.forward(x)?.sum_all()
}";
    check_expansion(source, &expect_file!["../tests/snapshots/sums.rs"]);
}

#[test]
fn weights() {
    let source = "
#[sam(with = sam, parts(ids, labels; m = 8, weights = &tokens(&labels)?))]
fn loss(sam: &Sam, model: &Net, ids: &Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
    let logits = model.forward(ids)?;
    Ok((cross_entropy(&logits, &labels)?, logits))
}";
    check_expansion(source, &expect_file!["../tests/snapshots/weights.rs"]);
}

#[test]
fn what_outlives_a_pass() {
    let source = "
#[sam]
fn loss(mut self: &Self, ref shared: Cell<f64>, ref mut count: f64, &(ref name, _): &(String, f64)) -> Result<Tensor, impl Error> {
    *count *= 2.;
    shared.set(*count);
    self = self.next(name);
    self.w.sqr()?.sum_all()? * *count
}";
    check_expansion(source, &expect_file!["../tests/snapshots/what_outlives_a_pass.rs"]);
}

fn check_derive(derive: fn(TokenStream) -> syn::Result<TokenStream>, source: &str, expected: &ExpectFile) {
    let item = source.parse().expect("tokens");
    let output = syn::parse2(derive(item).expect("no error")).expect("items");
    let input: String = source.trim().lines().map(|line| format!("//     {line}\n").replace("     \n", "\n")).collect();
    expected.assert_eq(&format!("// Input\n//\n{input}//\n// Output\n\n{}", prettyplease::unparse(&output)));
}

#[test]
fn derive_aux() {
    let source = "
struct Metrics<'a, T: Clone, const N: usize>
where
    T: 'a,
{
    name: &'a str,
    r#type: [T; N],
}";
    check_derive(derive::aux, source, &expect_file!["../tests/snapshots/derive_aux.rs"]);
}

#[test]
fn derive_aux_for_an_enum() {
    let source = "
#[aux(crate = crate::runtime)]
enum Phase {
    Warm,
    Hot(f64, Tensor),
    Done { at: Instant },
}";
    check_derive(derive::aux, source, &expect_file!["../tests/snapshots/derive_aux_for_an_enum.rs"]);
}

#[test]
fn derive_output() {
    let source = "
pub struct Step<A> {
    logits: Tensor,
    loss: Tensor,
    more: A,
}";
    check_derive(derive::output, source, &expect_file!["../tests/snapshots/derive_output.rs"]);
}

/// It is no field that has a value, but what stands there is still Rust.
#[test]
fn derive_for_a_trait_object() {
    let output = derive::aux("enum E<T> { A(dyn T + Send), B { b: T+ } }".parse().expect("tokens")).expect("no error");
    assert!(syn::parse2::<syn::File>(output).is_ok());
}

#[test]
fn what_cannot_be_derived() {
    let message = |derive: fn(TokenStream) -> syn::Result<TokenStream>, source: &str| {
        derive(source.parse().expect("tokens")).expect_err("an error").to_string()
    };
    let aux = "`Aux` is derived for structs and enums: implement it by hand";
    let output = "`Output` is derived for structs: a loss function returns a `Tensor`, a tuple or a struct";
    let loss = "`Output` needs the loss: add a field `loss: Tensor`";
    let option = "expected `#[aux(crate = ::path)]`";
    assert_eq!(message(derive::aux, "union U { a: f32, b: u32 }"), aux);
    assert_eq!(message(derive::aux, "#[aux(join)] struct A(f64);"), option);
    assert_eq!(message(derive::output, "enum E { A(Tensor) }"), output);
    assert_eq!(message(derive::output, "struct S { value: Tensor }"), loss);
    assert_eq!(message(derive::output, "struct S;"), loss);
    assert_eq!(message(derive::output, "struct S();"), loss);
}

#[test]
fn plain() {
    let source = r#"
#[sam(rho = rho, plain = plain_loss)]
/// Mean squared error of one batch.
///
/// # Errors
///
/// If the shapes differ.
#[cfg_attr(docsrs, doc = "Nightly.", must_use)]
#[inline]
pub fn loss(x: &Tensor, mut y: Tensor, rho: f64) -> Result<Tensor> {
    y = (x - y)?;
    y.sqr()?.mean_all()
}"#;
    check_expansion(source, &expect_file!["../tests/snapshots/plain.rs"]);
}

#[test]
fn refused() {
    let source = "
#[sam(rho = -1, norm = 2)]
/// The item stays as it is.
async fn loss(model: &Net, mut x: Tensor) -> Tensor {
    model.forward(&x).await
}";
    check_expansion(source, &expect_file!["../tests/snapshots/refused.rs"]);
}

/// All that is refused, in the order in which it is reported.
fn refusals(source: &str) -> Vec<String> {
    let (args, item) = split(source);
    let errors = valid::check(Args::read(args), syn::parse2(item)).err();
    errors.into_iter().flatten().map(|error| error.to_string()).collect()
}

/// With these arguments, on a function that nothing is wrong with.
fn refusals_of(args: &str) -> Vec<String> {
    refusals(&format!(
        "#[sam({args})] fn loss(x: &Tensor, y: Tensor, rng: &mut Rng, sam: &Sam) -> Result<Tensor> {{ f(x, y) }}"
    ))
}

#[test]
fn what_is_accepted() {
    for args in [
        "",
        "rho = 0",
        "rho = 1e-3, p = 1, adaptive = 0.0,",
        "rho = schedule::<f64, 3>(step, |x, y| x), p = inf, adaptive",
        "p = P, adaptive = -eta, vars = model.vars().into_iter().chain([v])",
        "rho = (-0.0), p = (((2u32)))",
        "replay(rng, y)",
        "replay(rng,), shards(x, y,; m = 0x10)",
        "with = sam, shards(x; m = sam.m()), crate = crate::facade",
        "gsam = 1, unnormalized, parts(x, y; m = 2)",
        "wsam = 0.9, hardest(x; k = x.dim(0)? / 3)",
        "stable, sharpest(x, y; k = 5)",
        "second_order, rho = 1",
        "shards(x; m = 2, reduction = mean), with = sam",
        "shards(x; m = 2, reduction = sum,)",
        "parts(x, y; m = 2, weights = &weights(y)?)",
        "with = r#sam, plain = r#loop, crate = ::a::b",
    ] {
        assert_eq!(refusals_of(args), [""; 0], "{args}");
    }
    for item in [
        "fn f() -> Result<Tensor> {}",
        "pub(in a::b) unsafe fn f<'a, T: A<'a>, const N: usize>(&'a mut self, x: T) -> Result<Tensor, T::E> where T: B {}",
        "fn f(self: &Self) -> candle_core::Result<(Tensor, u32)> {}",
        "fn f(self: &mut Self, [a, .., b]: [Tensor; 5], &(ref c, _): &(A, B), D { e, f: g @ H(..) }: D) -> Alias {}",
        "fn f((Ok(a) | Err(a)): Result<Tensor, Tensor>) -> result![Tensor] {}",
        "fn f(x: T) -> Result<Tensor> { let half typed = x. }",
    ] {
        assert_eq!(refusals(&format!("#[sam] {item}")), [""; 0], "{item}");
    }
}

#[test]
fn what_cannot_be_read() {
    let keys = "one of `rho`, `p`, `adaptive`, `unnormalized`, `gsam`, `wsam`, `stable`, `second_order`, `vars`, \
                `replay`, `shards`, `parts`, `hardest`, `sharpest`, `plain`, `with`, `crate`";
    let unknown = format!("unknown key `norm`: expected {keys}");
    let expected = format!("expected {keys}");
    for (args, refusal) in [
        ("norm = f::<A, B>(1, 2)", &*unknown),
        ("norm", &unknown),
        ("0.05", &expected),
        ("= 3", &expected),
        (",", &expected),
        ("rho", "`rho` is written `rho = 0.05`"),
        ("rho(0.05)", "`rho` is written `rho = 0.05`"),
        ("rho =", "expected a value after `=`"),
        ("rho = 0.05 p", "expected `,`"),
        ("p = 2, p = 3", "`p` is given twice: keep one"),
        ("adaptive(3)", "`adaptive` is written `adaptive` or `adaptive = 0.01`"),
        ("vars(v)", "`vars` is written `vars = model.vars()`"),
        ("replay = rng", "`replay` is written `replay(rng)`"),
        ("replay()", "`replay` is written `replay(rng)`"),
        ("replay(&rng)", "`replay` is written `replay(rng)`"),
        ("replay(rng; m = 3)", "`replay` is written `replay(rng)`"),
        ("shards(x)", "`shards` is written `shards(x, y; m = 32)`"),
        ("shards(x, m = 3)", "`shards` is written `shards(x, y; m = 32)`"),
        ("shards(; m = 3)", "`shards` is written `shards(x, y; m = 32)`"),
        ("shards(x; n = 3)", "`shards` is written `shards(x, y; m = 32)`"),
        ("parts(x; k = 3)", "`parts` is written `parts(x, y; m = 32)`"),
        ("hardest(x; m = 3)", "`hardest` is written `hardest(x, y; k = 32)`"),
        ("sharpest = x", "`sharpest` is written `sharpest(x, y; k = 64)`"),
        ("gsam", "`gsam` is written `gsam = 0.4`"),
        ("wsam(0.9)", "`wsam` is written `wsam = 0.9`"),
        ("stable = 1", "`stable` is written `stable`"),
        ("second_order(2)", "`second_order` is written `second_order`"),
        ("unnormalized = true", "`unnormalized` is written `unnormalized`"),
        ("plain", "`plain` is written `plain = plain_loss`"),
        ("plain = \"f\"", "`plain` is written `plain = plain_loss`"),
        ("with = self.sam", "`with` takes the name of an argument: add an argument `sam: &Sam` and write `with = sam`"),
        ("with(sam)", "`with` is written `with = sam`"),
        ("eta = 0.1", "unknown key `eta`: write `adaptive` or `adaptive = 0.01`"),
        ("m = 3", "unknown key `m`: write `shards(x, y; m = 32)`"),
        ("shards(x; m = 3, n = 3)", "unknown option `n` of `shards`: expected `reduction = sum` or `weights = EXPR`"),
        ("hardest(x; k = 3, n = 3)", "unknown option `n` of `hardest`: there is only `k`"),
        ("shards(x; m = 3, reduction)", "`reduction` is written `reduction = sum` or `reduction = mean`"),
        ("shards(x; m = 3, reduction = max)", "`reduction` is `sum` or `mean`"),
        ("parts(x; m = 3, weights)", "`weights` is written `weights = EXPR`"),
        ("parts(x; m = 3, weights = w v)", "expected `,`"),
        ("crate = \"::a\"", "`crate` is written `crate = ::sam_runtime`"),
    ] {
        assert_eq!(refusals_of(args), [refusal], "{args}");
    }
}

#[test]
fn what_is_out_of_range() {
    let rho = "`rho` is a radius: expected a number of at least 0";
    let p = "`p` is a norm: expected a number of at least 1, or `inf`";
    let eta = "`adaptive` takes a number of at least 0, or no value";
    let m = "`m` of `shards` is a number of examples: expected an integer of at least 1";
    let k = "`k` of `hardest` is a number of examples: expected an integer of at least 1";
    let alpha = "`gsam` takes α: expected a number of at least 0";
    let gamma = "`wsam` takes γ: expected a number of at least 0 and below 1";
    for (args, refusal) in [
        ("rho = -1", rho),
        ("rho = (-1e-9)", rho),
        ("rho = \"0.05\"", rho),
        ("rho = true", rho),
        ("p = 0.99", p),
        ("p = -2", p),
        ("p = 'p'", p),
        ("adaptive = -0.1", eta),
        ("adaptive = false", eta),
        ("shards(x; m = 0)", m),
        ("shards(x; m = -(8))", m),
        ("hardest(x; k = 0)", k),
        ("gsam = -0.4", alpha),
        ("gsam = \"0.4\"", alpha),
        ("wsam = 1", gamma),
        ("wsam = -0.1", gamma),
    ] {
        assert_eq!(refusals_of(args), [refusal], "{args}");
    }
}

#[test]
fn what_does_not_go_together() {
    for (args, refusal) in [
        ("rho = 1, with = sam", "`rho` and `with` cannot be used together: set it on `sam`"),
        ("with = sam, adaptive", "`adaptive` and `with` cannot be used together: set it on `sam`"),
        ("gsam = 0.4, with = sam", "`gsam` and `with` cannot be used together: set it on `sam`"),
        ("unnormalized, with = sam", "`unnormalized` and `with` cannot be used together: set it on `sam`"),
        ("gsam = 0.4, wsam = 0.9", "`wsam` and `gsam` cannot be used together: keep one"),
        ("stable, stable", "`stable` is given twice: keep one"),
        ("shards(x; m = 1), parts(y; m = 1)", "`parts` and `shards` cannot be used together: keep one"),
        ("second_order, p = 3", "`second_order` is for the plain ball: leave out `p`"),
        ("second_order, adaptive", "`second_order` is for the plain ball: leave out `adaptive`"),
        ("unnormalized, p = 3", "`unnormalized` has no norm: leave out `p`"),
        ("with = y", "`y` is not a reference: take `y: &Sam` or `y: &mut Sam`"),
        ("with = z", "`z` is not an argument: expected one of `x`, `y`, `rng`, `sam`"),
        ("replay(self)", "`self` is not an argument: expected one of `x`, `y`, `rng`, `sam`"),
        ("replay(y, y)", "`y` is named twice: one key can have it, once"),
        ("replay(y), shards(y; m = 1)", "`y` is named twice: one key can have it, once"),
        ("shards(rng; m = 1)", "`rng` is behind `&mut` and cannot be split: take `rng: &Tensor`"),
        (
            "shards(x; m = 1, reduction = sum, weights = w)",
            "`weights` and `reduction` cannot be used together: keep one",
        ),
        ("shards(x; m = 1, weights = w, weights = w)", "`weights` is given twice: keep one"),
        (
            "hardest(x; k = 1, reduction = sum)",
            "`reduction` is for `shards` and `parts`: `hardest` averages over its examples",
        ),
        (
            "sharpest(x; k = 1, weights = w)",
            "`weights` is for `shards` and `parts`: `sharpest` averages over its examples",
        ),
        ("plain = loss", "`loss` is the loss itself: give the plain function another name"),
        ("crate = sam_runtime", "`crate` must be an absolute path, like `::sam_runtime`"),
        ("crate = super::sam", "`crate` must be an absolute path, like `::sam_runtime`"),
    ] {
        assert_eq!(refusals_of(args), [refusal], "{args}");
    }
}

#[test]
fn what_no_loss_can_be() {
    let not_a_function = "expected a function: `#[sam]` goes above the `fn` that returns the loss";
    let by_value = "`self` cannot be moved into both passes: take `&self` or `&mut self`";
    let no_result = "a loss returns a `Result`: write `-> Result<Tensor>`";
    for (item, refusal) in [
        ("struct Loss;", not_a_function),
        ("pub mod loss {}", not_a_function),
        ("const LOSS: f64 = 0.;", not_a_function),
        ("const fn f() -> Result<Tensor> {}", "a loss cannot be `const`: write `fn`, tensors are computed at run time"),
        (
            "async fn f() -> Result<Tensor> {}",
            "a loss cannot be `async`: await first, and pass what comes of it as an argument",
        ),
        ("extern \"C\" fn f() -> Result<Tensor> {}", "a loss cannot be `extern`: let the `extern` function call it"),
        ("fn f(x: T, ...) -> Result<Tensor> {}", "a loss cannot be variadic: take a slice"),
        ("fn f() -> Result<Tensor>;", "a loss needs a body: put `#[sam]` on the implementation"),
        ("fn f(self) -> Result<Tensor> {}", by_value),
        ("fn f(mut self) -> Result<Tensor> {}", by_value),
        ("fn f(self: Rc<Self>) -> Result<Tensor> {}", by_value),
        ("fn f(x: T, (y, x): (T, T)) -> Result<Tensor> {}", "`x` is bound twice: rename one"),
        ("#[sam_runtime::sam(p = 1)] fn f() -> Result<Tensor> {}", "`#[sam]` is given twice: put all keys into one"),
        ("fn f() {}", no_result),
        ("fn f() -> (Tensor, Tensor) {}", no_result),
        ("fn f() -> &Tensor {}", no_result),
        ("fn f() -> [Tensor; 2] {}", no_result),
        ("fn f() -> impl Loss {}", no_result),
        ("fn f() -> ! {}", no_result),
        ("fn f() -> (candle_core::Tensor) {}", no_result),
        ("fn f() -> Option<Tensor> {}", no_result),
        ("fn f() -> f32 {}", no_result),
    ] {
        assert_eq!(refusals(&format!("#[sam] {item}")), [refusal], "{item}");
    }
    assert_eq!(refusals("#[sam(with = x)] fn f() -> Result<Tensor> {}"), ["`x` is not an argument: there is none"]);
}

#[test]
fn what_is_a_whole_step() {
    let is = "is an optimizer: `#[sam]` goes on the function that computes the loss, and the optimizer's step stays outside it";
    for argument in [
        "opt: &mut impl Optimizer",
        "opt: &mut dyn candle_nn::Optimizer",
        "opt: Box<dyn Optimizer>",
        "opt: &mut candle_nn::AdamW",
        "opt: &mut SGD",
        "opt: Option<Sgd>",
        "opt: &mut [Adam]",
        "opt: &RefCell<Sgd>",
        "opt: Arc<Mutex<AdamW>>",
        "opt: &mut MyOptimizer",
        "opt: &mut O",
        "opt: &mut P",
    ] {
        let source =
            format!("#[sam] fn f<O: Optimizer, P>({argument}) -> Result<Tensor> where P: x::Optimizer {{ step(opt) }}");
        assert_eq!(refusals(&source), [format!("`opt` {is}")], "{argument}");
    }
    let source = "#[sam] fn f((a, opt): (&Tensor, &mut Sgd), self_: &Self) -> Result<Tensor> { step(a, opt) }";
    assert_eq!(refusals(source).len(), 1);
    assert_eq!(
        refusals("#[sam] fn f(&mut self) -> Result<Tensor> { let l = self.l()?; self.opt.backward_step(&l)?; Ok(l) }"),
        [
            "`backward_step` inside a loss: `#[sam]` goes on the function that computes the loss, and the optimizer's step \
          stays outside it"
        ]
    );
    for item in [
        "fn f(opt: &AdamW) -> Result<Tensor> { scale(opt.learning_rate()) }",
        "fn f(opt: &mut AdamW, w: &Var) -> Result<Tensor> { w.sqr() }",
        "fn f(options: &mut OptimizerOptions, step: &dyn Fn(&mut Sgd)) -> Result<Tensor> { g(options, step) }",
    ] {
        assert_eq!(refusals(&format!("#[sam(rho = opt.learning_rate())] {item}")), [""; 0], "{item}");
    }
}

#[test]
fn what_a_pass_cannot_begin_with() {
    for (ty, handle) in [
        ("Arc<Mutex<StdRng>>", "Arc"),
        ("&Arc<Mutex<StdRng>>", "Arc"),
        ("&mut std::rc::Rc<RefCell<StdRng>>", "Rc"),
        ("&mut Option<Rc<Cell<u64>>>", "Rc"),
        ("&mut rand::rngs::ThreadRng", "ThreadRng"),
        ("ThreadRng", "ThreadRng"),
        ("&&RefCell<StdRng>", "&"),
        ("&mut &Counter", "&"),
    ] {
        let source = format!("#[sam(replay(rng))] fn f(rng: {ty}) -> Result<Tensor> {{ draw(rng) }}");
        let refusal = format!(
            "`rng` cannot be replayed: a clone of `{handle}` shares its state; take the state itself, e.g. \
             `rng: &mut StdRng`"
        );
        assert_eq!(refusals(&source), [refusal], "{ty}");
    }
    let elsewhere = "cannot point elsewhere in the second pass: take";
    for (item, refusal) in [
        (
            "fn f(mut self: &mut Self, sam: &Sam) -> Result<Tensor> { g(self) }",
            format!("`self` {elsewhere} `&mut self`, and write `let mut this = &mut *self;` in the body"),
        ),
        (
            "fn f(mut sam: &mut Sam) -> Result<Tensor> { g(sam) }",
            format!("`sam` {elsewhere} `sam: &mut Sam`, without `mut`"),
        ),
    ] {
        assert_eq!(refusals(&format!("#[sam(with = sam)] {item}")), [refusal], "{item}");
    }
    // An argument that only an included file uses is not seen.
    for (key, body) in [
        ("shards(x; m = 1)", "include!(\"body.rs\")"),
        ("parts(x; m = 1)", "println!(\"{x}\"); w.sqr()"),
        ("hardest(x; k = 1)", "w.x.sqr()"),
    ] {
        let name = key.split('(').next().unwrap_or(key);
        let source = format!("#[sam({key})] fn f(w: &Var, x: &Tensor) -> Result<Tensor> {{ {body} }}");
        assert_eq!(refusals(&source), [format!("`{name}` cannot split `x`: the body does not use `x`")], "{body}");
    }
}

#[test]
fn all_at_once() {
    let source = "#[sam(rho = -1, norm = 2, p, with = sam, replay(z))] const async fn loss(self, x: T) {}";
    let whole = refusals(source);
    let expected = [
        "unknown key `norm`: expected one of `rho`, `p`, `adaptive`, `unnormalized`, `gsam`, `wsam`, `stable`, \
         `second_order`, `vars`, `replay`, `shards`, `parts`, `hardest`, `sharpest`, `plain`, `with`, `crate`",
        "`p` is written `p = 2` or `p = inf`",
        "`rho` is a radius: expected a number of at least 0",
        "`rho` and `with` cannot be used together: set it on `sam`",
        "a loss cannot be `const`: write `fn`, tensors are computed at run time",
        "a loss cannot be `async`: await first, and pass what comes of it as an argument",
        "`self` cannot be moved into both passes: take `&self` or `&mut self`",
        "a loss returns a `Result`: write `-> Result<Tensor>`",
        "`z` is not an argument: expected one of `x`",
        "`sam` is not an argument: expected one of `x`",
    ];
    assert_eq!(whole, expected);
    // An item that cannot be read is one more error, and stays too.
    let (args, item) = split("#[sam(rho = -1)] struct Loss;");
    let output = rewrite(args, item).to_string();
    assert!(output.contains("struct Loss ;") && output.matches("compile_error").count() == 2, "{output}");
}
