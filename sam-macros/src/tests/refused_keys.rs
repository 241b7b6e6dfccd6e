//! What is refused in the attribute.

use super::{refusals, refusals_of};

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
        "gsam = 1, unnormalised, parts(x, y; m = 2)",
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
    let keys = "one of `rho`, `p`, `adaptive`, `unnormalised`, `gsam`, `wsam`, `stable`, `second_order`, `vars`, \
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
        ("unnormalised = true", "`unnormalised` is written `unnormalised`"),
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
        ("unnormalised, with = sam", "`unnormalised` and `with` cannot be used together: set it on `sam`"),
        ("gsam = 0.4, wsam = 0.9", "`wsam` and `gsam` cannot be used together: keep one"),
        ("stable, stable", "`stable` is given twice: keep one"),
        ("shards(x; m = 1), parts(y; m = 1)", "`parts` and `shards` cannot be used together: keep one"),
        ("second_order, p = 3", "`second_order` is for the plain ball: leave out `p`"),
        ("second_order, adaptive", "`second_order` is for the plain ball: leave out `adaptive`"),
        ("unnormalised, p = 3", "`unnormalised` has no norm: leave out `p`"),
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
