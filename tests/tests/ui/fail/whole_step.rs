use candle_core::{Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer};
use sam_runtime::sam;

#[sam]
fn step(opt: &mut AdamW, w: &Var) -> Result<Tensor> {
    let loss = w.sqr()?.sum_all()?;
    opt.step(&loss.backward()?)?;
    Ok(loss)
}

struct Trainer<O> {
    opt: O,
    w: Var,
}

impl<O: Optimizer> Trainer<O> {
    #[sam]
    fn step(&mut self) -> Result<Tensor> {
        let loss = self.w.sqr()?.sum_all()?;
        self.opt.backward_step(&loss)?;
        Ok(loss)
    }
}

fn main() {}
