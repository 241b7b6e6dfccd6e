use candle_core::{Tensor, Var};
use sam_runtime::{plain, sam};
use sam_tests::{assert_flat, assert_sharp, three_four};

trait Model {
    type Error: From<candle_core::Error>;

    fn loss(&self, scale: f64) -> Result<Tensor, Self::Error>;
}

struct Net(Var);

impl Model for Net {
    type Error = candle_core::Error;

    #[sam(rho = 0.5)]
    fn loss(&self, scale: f64) -> Result<Tensor, Self::Error> {
        self.0.sqr()?.sum_all()? * scale
    }
}

impl<M: Model> Model for Box<M> {
    type Error = M::Error;

    #[sam(rho = 7)]
    fn loss(&self, scale: f64) -> Result<Tensor, M::Error> {
        (**self).loss(scale)
    }
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<(), candle_core::Error> {
    let w = three_four();
    let net = Net(w.clone());
    let dynamic: &dyn Model<Error = candle_core::Error> = &net;
    assert_sharp(&dynamic.loss(2.)?, &w, 2.);
    assert_flat(&plain(|| dynamic.loss(2.))?, &w, 2.);
    // The outermost is the loss: ρ = 7 moves w from 5 to 12 units from the origin.
    let boxed = Box::new(net).loss(1.)?.backward()?.get(&w).unwrap().to_vec1::<f64>()?;
    assert!((boxed[0] - 6. * 12. / 5.).abs() < 1e-12);
    Ok(())
}
