use candle_core::Result;
use sam_tests::{assert_flat, assert_sharp, three_four};

mod losses {
    use candle_core::{Result, Tensor, Var};
    use sam_runtime::sam;

    #[sam(rho = 0.5, plain = plain_loss)]
    #[cfg(not(miri))]
    pub(crate) fn loss(
        w: &Var,
        #[cfg(not(miri))] scale: f64,
        #[cfg(miri)] stream: Stream,
        #[cfg(miri)] (graph, _): (Graph, Tensor),
    ) -> Result<Tensor> {
        #[cfg(miri)]
        stream.wait(graph);
        w.sqr()?.sum_all()? * scale
    }

    #[cfg(miri)]
    #[sam(plain = not_there)]
    pub(crate) fn loss(w: &Missing) -> Nothing {
        w.loss()
    }

    #[cfg_attr(not(miri), sam(rho = 0.5))]
    pub(in super::losses) fn inner(w: &Var) -> Result<Tensor> {
        w.sqr()?.sum_all()
    }

    pub(super) fn outer(w: &Var) -> Result<Tensor> {
        inner(w)
    }
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    assert_sharp(&losses::loss(&w, 2.)?, &w, 2.);
    assert_flat(&losses::plain_loss(&w, 2.)?, &w, 2.);
    assert_sharp(&losses::outer(&w)?, &w, 1.);
    Ok(())
}
