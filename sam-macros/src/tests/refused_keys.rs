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
        "vars = model.vars(), buffers = model.buffers()",
        "buffers = [mean.clone()]",
        "replay(rng, y)",
        "replay(rng,), shards(x, y,; m = 0x10)",
        "with = sam, shards(x; m = sam.m()), crate = crate::facade",
        "gsam = 1, unnormalized, micro_batches(x, y; m = 2)",
        "wsam = 0.9, hardest(x; k = x.dim(0)? / 3)",
        "stable, sharpest(x, y; k = 5)",
        "second_order, rho = 1",
        "all_reduce = world, shards(x; m = 2)",
        "all_reduce = &self.world, ascent = per_rank, shards(x; m = 2)",
        "all_reduce = world, ascent = synchronized, micro_batches(x; m = 2)",
        "shards(x; m = 2, reduction = mean), with = sam",
        "shards(x; m = 2, reduction = sum,)",
        "micro_batches(x, y; m = 2, weights = &weights(y)?)",
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
                `buffers`, `all_reduce`, `ascent`, `replay`, `shards`, `micro_batches`, `hardest`, `sharpest`, `plain`, \
                `with`, `crate`";
    let unknown = format!("unknown key `norm`: expected {keys}");
    let expected = format!("expected {keys}");
    for (args, refusal) in [
        ("norm = f::<A, B>(1, 2)", &*unknown),
        ("norm", &unknown),
        ("0.05", &expected),
        ("= 3", &expected),
        (",", &expected),
        ("rho", "`rho` needs a value, e.g. `rho = 0.05`"),
        ("rho(0.05)", "`rho` takes a value: write `rho = 0.05`"),
        ("rho =", "expected a value after `=`"),
        ("rho = 0.05 p", "expected `,`"),
        ("p = 2, p = 3", "`p` is given twice: keep one"),
        ("adaptive(3)", "`adaptive` takes one value or none: write `adaptive` or `adaptive = 0.01`"),
        ("vars(v)", "`vars` takes a list of variables: write `vars = model.vars()`"),
        ("replay = rng", "`replay` takes a list of arguments: write `replay(rng)`"),
        ("replay()", "`replay` takes a list of arguments: write `replay(rng)`"),
        ("replay(&rng)", "`replay` takes a list of arguments: write `replay(rng)`"),
        ("replay(rng; m = 3)", "`replay` takes a list of arguments: write `replay(rng)`"),
        ("shards(x)", "`shards` takes a list of arguments and a number: write `shards(x, y; m = 32)`"),
        ("shards(x, m = 3)", "`shards` takes a list of arguments and a number: write `shards(x, y; m = 32)`"),
        ("shards(; m = 3)", "`shards` takes a list of arguments and a number: write `shards(x, y; m = 32)`"),
        ("shards(x; n = 3)", "`shards` takes a list of arguments and a number: write `shards(x, y; m = 32)`"),
        (
            "micro_batches(x; k = 3)",
            "`micro_batches` takes a list of arguments and a number: write `micro_batches(x, y; m = 32)`",
        ),
        ("hardest(x; m = 3)", "`hardest` takes a list of arguments and a number: write `hardest(x, y; k = 32)`"),
        ("sharpest = x", "`sharpest` takes a list of arguments and a number: write `sharpest(x, y; k = 64)`"),
        ("gsam", "`gsam` needs a value, e.g. `gsam = 0.4`"),
        ("wsam(0.9)", "`wsam` takes a value: write `wsam = 0.9`"),
        ("stable = 1", "`stable` takes no value"),
        ("second_order(2)", "`second_order` takes no value"),
        ("unnormalized = true", "`unnormalized` takes no value"),
        ("plain", "`plain` takes a name: write `plain = plain_loss`"),
        ("plain = \"f\"", "`plain` takes a name: write `plain = plain_loss`"),
        (
            "with = self.sam",
            "`with` takes the name of an argument: write `with = sam`, and add an argument `sam: &Sam`",
        ),
        ("with(sam)", "`with` takes the name of an argument: write `with = sam`, and add an argument `sam: &Sam`"),
        ("eta = 0.1", "unknown key `eta`: write `adaptive` or `adaptive = 0.01`"),
        ("buffers", "`buffers` needs a value, e.g. `buffers = [mean.clone(), var.clone()]`"),
        ("buffers(mean)", "`buffers` takes a list of variables: write `buffers = [mean.clone(), var.clone()]`"),
        ("all_reduce", "`all_reduce` needs a value, e.g. `all_reduce = world`, and add an argument `world: &Comm`"),
        ("world = w", "unknown key `world`: write `all_reduce = world`, and add an argument `world: &Comm`"),
        (
            "all_reduce = world, ascent = both",
            "`ascent` takes one of two names: write `ascent = synchronized` or `ascent = per_rank`",
        ),
        ("rho: 0.05", "unexpected `:` after `rho`: write `rho = 0.05`"),
        ("unnormalised", "unknown key `unnormalised`: write `unnormalized`"),
        ("parts(x; m = 3)", "unknown key `parts`: write `micro_batches(x, y; m = 32)`"),
        ("params = v", "unknown key `params`: write `vars = model.vars()`"),
        ("m = 3", "unknown key `m`: write `shards(x, y; m = 32)`"),
        ("shards(x; m = 3, n = 3)", "unknown option `n` of `shards`: expected `reduction = sum` or `weights = EXPR`"),
        ("hardest(x; k = 3, n = 3)", "unknown option `n` of `hardest`: expected only `k`"),
        ("shards(x; m = 3, reduction)", "`reduction` needs a value: `sum` or `mean`"),
        ("shards(x; m = 3, reduction = max)", "`reduction` must be `sum` or `mean`"),
        ("micro_batches(x; m = 3, weights)", "`weights` needs a value, e.g. `weights = [1.0, 0.5]`"),
        ("micro_batches(x; m = 3, weights = w v)", "expected `,`"),
        ("crate = \"::a\"", "`crate` takes a path: write `crate = ::sam_runtime`"),
    ] {
        assert_eq!(refusals_of(args), [refusal], "{args}");
    }
}

#[test]
fn what_is_out_of_range() {
    let rho = "`rho` must be a number of at least 0";
    let p = "`p` must be a number of at least 1, or `inf`";
    let eta = "`adaptive` must be a number of at least 0";
    let m = "`m` of `shards` must be an integer of at least 1";
    let k = "`k` of `hardest` must be an integer of at least 1";
    let alpha = "`gsam` must be a number of at least 0";
    let gamma = "`wsam` must be a number of at least 0 and below 1";
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
        ("rho = 1, with = sam", "invalid combination: `rho` and `with`: set `rho` on `sam`"),
        ("with = sam, adaptive", "invalid combination: `adaptive` and `with`: set `adaptive` on `sam`"),
        ("buffers = b, with = sam", "invalid combination: `buffers` and `with`: set `buffers` on `sam`"),
        ("gsam = 0.4, with = sam", "invalid combination: `gsam` and `with`: set `gsam` on `sam`"),
        ("unnormalized, with = sam", "invalid combination: `unnormalized` and `with`: set `unnormalized` on `sam`"),
        ("all_reduce = w, with = sam", "invalid combination: `all_reduce` and `with`: set `all_reduce` on `sam`"),
        ("ascent = synchronized", "`ascent` is for several ranks: add `all_reduce = world`"),
        (
            "all_reduce = w, ascent = synchronized, shards(x; m = 1)",
            "`shards` have a perturbation each, which cannot be synchronized: use `micro_batches`, or remove `ascent`",
        ),
        ("gsam = 0.4, wsam = 0.9", "invalid combination: `wsam` and `gsam`: keep one"),
        ("stable, stable", "`stable` is given twice: keep one"),
        ("shards(x; m = 1), micro_batches(y; m = 1)", "invalid combination: `micro_batches` and `shards`: keep one"),
        ("second_order, p = 3", "`second_order` supports only the Euclidean ball: remove `p`"),
        ("second_order, adaptive", "`second_order` supports only the Euclidean ball: remove `adaptive`"),
        ("unnormalized, p = 3", "`unnormalized` does not use a norm: remove `p`"),
        ("with = y", "`y` is not a reference: take `y: &Sam` or `y: &mut Sam`"),
        ("with = z", "`z` is not an argument: expected one of `x`, `y`, `rng`, `sam`"),
        ("replay(self)", "`self` is not an argument: expected one of `x`, `y`, `rng`, `sam`"),
        ("replay(y, y)", "`y` is listed more than once"),
        ("replay(y), shards(y; m = 1)", "`y` is listed more than once"),
        ("shards(rng; m = 1)", "`rng` is behind `&mut` and cannot be split: take `rng: &Tensor`"),
        ("shards(x; m = 1, reduction = sum, weights = w)", "invalid combination: `weights` and `reduction`: keep one"),
        ("shards(x; m = 1, weights = w, weights = w)", "`weights` is given twice: keep one"),
        (
            "hardest(x; k = 1, reduction = sum)",
            "`hardest` has no `reduction`: it averages over the samples that it selects",
        ),
        (
            "sharpest(x; k = 1, weights = w)",
            "`sharpest` has no `weights`: it averages over the samples that it selects",
        ),
        ("plain = loss", "`loss` is the loss function itself: give the plain function another name"),
        ("crate = sam_runtime", "`crate` must be an absolute path, e.g. `::sam_runtime`"),
        ("crate = super::sam", "`crate` must be an absolute path, e.g. `::sam_runtime`"),
    ] {
        assert_eq!(refusals_of(args), [refusal], "{args}");
    }
}
