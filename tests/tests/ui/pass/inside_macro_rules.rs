use candle_core::{Result, Tensor, Var};
use sam_tests::{assert_flat, assert_sharp, three_four};

#[doc(hidden)]
pub mod runtime {
    pub use sam_runtime::*;
}

macro_rules! losses {
    ($($(#[$attr:meta])* $vis:vis fn $name:ident($w:ident: $ty:ty, $scale:pat => $s:ty) -> $out:ty $body:block
        rho = $rho:expr, plain = $plain:ident, replay = $replay:ident;)*) => {$(
        $(#[$attr])*
        #[$crate::ui::pass::inside_macro_rules::runtime::sam(
            rho = $rho,
            plain = $plain,
            replay($replay),
            crate = $crate::ui::pass::inside_macro_rules::runtime,
        )]
        $vis fn $name($w: $ty, $scale: $s, counter: &mut u32, $replay: &mut u32) -> $out {
            // Names of this macro and of its user do not meet.
            let w = 1;
            *counter += w;
            *$replay += w;
            $body
        }
    )*};
}

/// The function as it is, and a function as one piece.
macro_rules! annotated {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty $body:block) => {
        $(#[$attr])*
        #[sam_runtime::sam(rho = RHO)]
        $vis fn $name($($arg: $ty),*) -> $out $body
    };
    ($item:item) => {
        #[sam_runtime::sam(rho = RHO)]
        $item
    };
}

annotated! {
    /// The squared norm.
    pub(crate) fn in_parts(w: &Var, scale: Tensor) -> Result<Tensor> {
        w.sqr()?.sum_all()?.mul(&scale)
    }
}

annotated! {
    unsafe fn in_one_piece(w: &Var) -> Result<Tensor> {
        w.sqr()?.sum_all()
    }
}

const RHO: f64 = 0.5;

losses! {
    /// The squared norm.
    fn loss(w: &Var, mut scale => f64) -> Result<Tensor> {{
        scale *= 2.;
        w.sqr()?.sum_all()? * scale
    }}
    rho = RHO.max(0.1), plain = plain_loss, replay = draws;

    pub(crate) fn by_value(w: Tensor, (a, b) => (f64, f64)) -> Result<(Tensor, f64)> {{
        Ok(((w.sqr()?.sum_all()? * a)?, b))
    }}
    rho = 1. / 2., plain = plain_by_value, replay = draws;
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut counter, mut draws) = (three_four(), 0, 0);
    let two = Tensor::new(2f64, w.device())?;
    assert_sharp(&in_parts(&w, two)?, &w, 2.);
    // SAFETY: it asks for nothing.
    assert_sharp(&unsafe { in_one_piece(&w) }?, &w, 1.);
    assert_sharp(&loss(&w, 3., &mut counter, &mut draws)?, &w, 6.);
    assert_eq!((counter, draws), (2, 1));
    assert_flat(&plain_loss(&w, 3., &mut counter, &mut draws)?, &w, 6.);
    let (sharp, b) = by_value(w.as_tensor().clone(), (2., 7.), &mut counter, &mut draws)?;
    assert_sharp(&sharp, &w, 2.);
    assert_eq!(b, 7.);
    plain_by_value(w.as_tensor().clone(), (2., 7.), &mut counter, &mut draws)?;
    Ok(())
}
