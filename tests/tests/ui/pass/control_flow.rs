use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_flat, assert_sharp, three_four};

#[sam(rho = 0.5)]
fn loss(w: &Var, scales: &[&str], early: bool) -> Result<Tensor> {
    #![allow(clippy::needless_return)]
    use std::str::FromStr;

    const ONE: f64 = 1.;

    struct Parser;

    impl Parser {
        fn parse(text: &str) -> Result<f64> {
            f64::from_str(text).map_err(candle_core::Error::msg)
        }
    }

    fn square(w: &Tensor) -> Result<Tensor> {
        w.sqr()?.sum_all()
    }

    if early {
        return square(w);
    }
    let times = |a: f64| move |text: &str| -> Result<f64> { Ok(a * Parser::parse(text)?) };
    let scale = 'found: {
        let mut product = ONE;
        'all: for texts in scales.chunks(2) {
            for text in texts {
                if text.is_empty() {
                    break 'all;
                }
                product = times(product)(text)?;
                if product > 100. {
                    break 'found 100.;
                }
            }
        }
        product
    };
    return match scale {
        0. => square(&w.detach()),
        scale => square(w)? * scale,
    };
}

#[sam]
fn not_yet(_: &Var) -> Result<Tensor> {
    panic!("not yet")
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    assert_sharp(&loss(&w, &[], true)?, &w, 1.);
    assert_sharp(&loss(&w, &["2", "3"], false)?, &w, 6.);
    assert_sharp(&loss(&w, &["2", "", "x"], false)?, &w, 2.);
    assert_sharp(&loss(&w, &["20", "30", "x"], false)?, &w, 100.);
    assert!(loss(&w, &["x"], false).unwrap_err().to_string().contains("invalid float"));
    assert!(std::panic::catch_unwind(|| not_yet(&three_four())).is_err());
    // No variable in it: nothing to perturb, one pass.
    assert!(loss(&w, &["0"], false)?.backward()?.get(&w).is_none());
    assert_flat(&sam_runtime::plain(|| loss(&w, &["4"], false))?, &w, 4.);
    Ok(())
}
