#![no_implicit_prelude]

mod loss {
    use ::core::clone::Clone as _;
    use ::core::ops::Mul as _;
    use ::core::result::Result::Ok;

    #[::sam_runtime::sam(rho = 0.5, p = inf, adaptive, vars = [w.clone()], replay(draws), shards(x; m = 1), plain = flat)]
    pub(super) fn every_key(
        w: &::candle_core::Var,
        x: &::candle_core::Tensor,
        draws: &mut u32,
        scale: f64,
    ) -> ::candle_core::Result<::candle_core::Tensor> {
        *draws += 1;
        w.sqr()?.sum_all()?.mul(scale)?.mul(x.mean_all()?)
    }

    #[::sam_runtime::sam(rho = 0.5)]
    pub(super) fn loss(w: &::candle_core::Var, scale: f64) -> ::candle_core::Result<(::candle_core::Tensor, f64)> {
        Ok((w.sqr()?.sum_all()?.mul(scale)?, scale))
    }
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> ::candle_core::Result<()> {
    let w = ::sam_tests::three_four();
    let x = ::candle_core::Tensor::ones((2, 1), w.dtype(), w.device())?;
    let mut draws = 0;
    let _ = loss::every_key(&w, &x, &mut draws, 2.)?;
    ::core::assert_eq!(draws, 2);
    ::sam_tests::assert_flat(&loss::flat(&w, &x, &mut draws, 2.)?, &w, 2.);
    ::sam_tests::assert_sharp(&loss::loss(&w, 2.)?.0, &w, 2.);
    ::core::result::Result::Ok(())
}
