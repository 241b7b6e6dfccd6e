//! The loss at w, beside it, and along directions.

use candle_core::Result;

use super::landscape::Landscape;
use super::session::Session;
use super::weight_vector::WeightVector;

impl Landscape<'_> {
    /// L(w), the mean over all samples. It may be infinite or NaN.
    ///
    /// # Errors
    /// Those of the loss function, and if it returns more than one number.
    pub fn loss(&mut self) -> Result<f64> {
        Session::begin(self)?.loss()
    }

    /// L(w + v). It may be infinite or NaN.
    ///
    /// # Errors
    /// Those of the loss function, and if `v` is of other variables.
    pub fn loss_at(&mut self, v: &WeightVector) -> Result<f64> {
        let mut session = Session::begin(self)?;
        session.at(v, Session::loss)
    }

    /// ∇L(w).
    ///
    /// # Errors
    /// Those of the loss function and of its backward pass, and
    /// [`Error::NoGradient`](crate::Error::NoGradient).
    pub fn gradient(&mut self) -> Result<WeightVector> {
        Ok(Session::begin(self)?.gradient()?.1)
    }

    /// L(w + t v) for each t. With v the difference of two checkpoints it is the line between them, from 0 to 1; with
    /// [`ascent`](Self::ascent) it is where SAM looks.
    ///
    /// ```
    /// use candle_core::{Device, Result, Var};
    /// use sam_runtime::sharpness::{Landscape, WeightVector};
    ///
    /// # fn main() -> Result<()> {
    /// let w = Var::new(&[1f64], &Device::Cpu)?;
    /// let v = WeightVector::of_weights([w.clone()])?;
    /// let mut landscape = Landscape::new([w.clone()], || w.sqr()?.sum_all());
    /// assert_eq!(landscape.line(&v, &[-1., 0., 1.])?, [0., 1., 4.]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`loss_at`](Self::loss_at).
    pub fn line(&mut self, v: &WeightVector, at: &[f64]) -> Result<Vec<f64>> {
        let mut session = Session::begin(self)?;
        at.iter().map(|t| session.at(&v.scaled(*t), Session::loss)).collect()
    }

    /// L(w + x u + y v), a row for each y. Usually u and v are random and
    /// [filter-normalized](WeightVector::filter_normalized). For long ones with a progress bar, or that can be interrupted, ask
    /// for one point after another with [`loss_at`](Self::loss_at).
    ///
    /// # Errors
    /// As [`loss_at`](Self::loss_at).
    pub fn plane(&mut self, [u, v]: [&WeightVector; 2], x: &[f64], y: &[f64]) -> Result<Vec<Vec<f64>>> {
        let mut session = Session::begin(self)?;
        let row = |y: &f64| x.iter().map(|x| session.at(&u.scaled(*x).plus(v, *y)?, Session::loss)).collect();
        y.iter().map(row).collect()
    }
}
