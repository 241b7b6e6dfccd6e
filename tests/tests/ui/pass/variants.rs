//! The keys of the variants.

use candle_core::{DType, Device, Result, Tensor, Var};
use sam_runtime::sam;

/// A number that is none yet.
pub struct Alpha(pub f32);

impl From<Alpha> for f64 {
    fn from(alpha: Alpha) -> Self {
        Self::from(alpha.0)
    }
}

#[sam(rho = 0.1, gsam = Alpha(0.5))]
fn gsam(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(rho = 0.1, wsam = gamma)]
fn wsam(w: &Var, gamma: f64) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(rho = 0.1, stable, p = 3, adaptive)]
fn stable(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(rho = 0.1, second_order)]
fn second_order(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(rho = 0.01, unnormalized, gsam = 1)]
fn unnormalized(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(rho = 0.1, micro_batches(x, y; m = 4))]
fn micro_batches(w: &Var, x: &Tensor, y: Tensor) -> Result<(Tensor, Tensor)> {
    let z = x.broadcast_mul(w)?.sum(1)?;
    Ok(((&z - y)?.sqr()?.mean_all()?, z))
}

/// In a method, with an argument by value.
struct Model {
    w: Var,
}

impl Model {
    #[sam(rho = 0.1, hardest(x, y; k = x.dim(0)? / 3))]
    fn hardest(&self, x: &Tensor, mut y: Tensor) -> Result<Tensor> {
        y = (y * 0.5)?;
        (x.broadcast_mul(&self.w)?.sum(1)? - y)?.sqr()
    }
}

#[sam(rho = 0.1, sharpest(x; k = 5), plain = plain_losses)]
fn sharpest(w: &Var, x: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(w)?.sum(1)?.sqr()
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = Var::new(&[3f64, 4.], &Device::Cpu)?;
    let gradient = |loss: Tensor| -> Result<Vec<f64>> { loss.backward()?.get(&w).expect("a gradient").to_vec1() };
    // w^2 has the same direction everywhere: no part of g is orthogonal to the second gradient, 2 (w + 0.1 w / |w|).
    let close = |found: Vec<f64>, factor: f64| {
        let expected = [6.0 * factor, 8.0 * factor];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}, expected {expected:?}");
    };
    close(gradient(gsam(&w)?)?, 1.02);
    close(gradient(wsam(&w, 0.5)?)?, 1.02);
    close(gradient(wsam(&w, 0.0)?)?, 1.0);
    close(gradient(second_order(&w)?)?, 1.02);
    close(gradient(unnormalized(&w)?)?, 1.02);
    let stable = gradient(stable(&w)?)?;
    assert!((stable[0].hypot(stable[1]) - 10.0).abs() < 1e-9, "{stable:?}");

    let x = Tensor::arange(0f64, 20.0, &Device::Cpu)?.reshape((10, 2))?;
    let y = Tensor::zeros(10, DType::F64, &Device::Cpu)?;
    let (loss, outputs) = micro_batches(&w, &x, y.clone())?;
    assert_eq!(outputs.dims(), [10]);
    assert_eq!(gradient(loss)?.len(), 2);
    let model = Model { w: w.clone() };
    let whole = plain_losses(&w, &x)?.mean_all()?.to_scalar::<f64>()?;
    for loss in [model.hardest(&x, y)?, sharpest(&w, &x)?] {
        assert!((loss.to_scalar::<f64>()? - whole).abs() < 1e-9 * whole);
        assert_eq!(gradient(loss)?.len(), 2);
    }
    Ok(())
}
