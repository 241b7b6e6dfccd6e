//! What `#[sam]` expands to.

use expect_test::expect_file;

use super::check_expansion;

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
    check_expansion(source, &expect_file!["../../tests/snapshots/free_function.rs"]);
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
    check_expansion(source, &expect_file!["../../tests/snapshots/method.rs"]);
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
    check_expansion(source, &expect_file!["../../tests/snapshots/arguments.rs"]);
}

#[test]
fn every_key() {
    let source = "
#[sam(
    rho = 0.05, p = inf, adaptive, vars = model.vars(), buffers = model.buffers(), replay(rng), shards(x; m = 32),
    plain = plain_loss, crate = ::facade::sam,
)]
fn loss(model: &Net, x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    model.forward(x, rng)?.mean_all()
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/every_key.rs"]);
}

#[test]
fn all_reduce() {
    let source = "
#[sam(all_reduce = world, ascent = synchronized)]
fn loss(model: &Net, x: &Tensor, world: &Comm) -> Result<Tensor> {
    model.forward(x)?.mean_all()
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/all_reduce.rs"]);
}

#[test]
fn replay() {
    let source = "
#[sam(p = 1.5, adaptive = 0.1, replay(rng, dropout, seed))]
fn loss(model: &Net, x: &Tensor, rng: &mut Rng, mut dropout: &Dropout, mut seed: u64) -> Result<Tensor> {
    seed += 1;
    dropout.forward(&model.forward(x, rng, seed)?)
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/replay.rs"]);
}

#[test]
fn shards() {
    let source = "
#[sam(with = config, shards(x, y, weight; m = y.dim(0)?.div_ceil(4)))]
fn loss(config: &mut Sam, model: &Net, x: &Tensor, mut y: Tensor, weight: Tensor, scale: Tensor) -> Result<Tensor> {
    y = (y * &scale)?;
    model.forward(x)?.sub(&y)?.sqr()?.mul(&weight)?.mean_all()
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/shards.rs"]);
}

#[test]
fn variants() {
    let source = "
#[sam(rho = 0.2, gsam = alpha, unnormalized, hardest(x, y; k = x.dim(0)? / 3))]
fn losses(model: &Net, x: &Tensor, y: Tensor, alpha: f64) -> Result<Tensor> {
    cross_entropies(&model.forward(x)?, &y)
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/variants.rs"]);
}

#[test]
fn sums() {
    let source = "
#[sam(shards(x; m = 32, reduction = sum))]
fn loss(model: &Net, x: &Tensor) -> Result<Tensor> {
    model.forward(x)?.sum_all()
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/sums.rs"]);
}

#[test]
fn weights() {
    let source = "
#[sam(with = sam, micro_batches(ids, labels; m = 8, weights = &tokens(&labels)?))]
fn loss(sam: &Sam, model: &Net, ids: &Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
    let logits = model.forward(ids)?;
    Ok((cross_entropy(&logits, &labels)?, logits))
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/weights.rs"]);
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
    check_expansion(source, &expect_file!["../../tests/snapshots/what_outlives_a_pass.rs"]);
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
    check_expansion(source, &expect_file!["../../tests/snapshots/plain.rs"]);
}

#[test]
fn refused() {
    let source = "
#[sam(rho = -1, norm = 2)]
/// The item stays as it is.
async fn loss(model: &Net, mut x: Tensor) -> Tensor {
    model.forward(&x).await
}";
    check_expansion(source, &expect_file!["../../tests/snapshots/refused.rs"]);
}
