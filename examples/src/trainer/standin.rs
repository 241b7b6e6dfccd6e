//! Until `sam_runtime::optim` has it: AdamW without a state that can be saved.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_nn::{Optimizer as _, ParamsAdamW, VarMap};
use sam_runtime::nn;
use sam_runtime::optim::{ParamsSgd, Sgd};

pub struct ParamGroup {
    vars: Vec<Var>,
    weight_decay: Option<f64>,
}

impl ParamGroup {
    pub fn new(vars: Vec<Var>) -> Self {
        Self { vars, weight_decay: None }
    }

    pub fn weight_decay(self, weight_decay: f64) -> Self {
        Self { weight_decay: Some(weight_decay), ..self }
    }
}

#[derive(Debug)]
pub struct AdamW(Vec<candle_nn::AdamW>);

pub fn sgd(groups: impl IntoIterator<Item = ParamGroup>, params: ParamsSgd) -> Result<Sgd> {
    Sgd::new(groups.into_iter().flat_map(|group| group.vars).collect(), params)
}

impl AdamW {
    pub fn with_groups(groups: impl IntoIterator<Item = ParamGroup>, params: ParamsAdamW) -> Result<Self> {
        let one = |group: ParamGroup| {
            let weight_decay = group.weight_decay.unwrap_or(params.weight_decay);
            candle_nn::AdamW::new(group.vars, ParamsAdamW { weight_decay, ..params.clone() })
        };
        groups.into_iter().map(one).collect::<Result<_>>().map(Self)
    }

    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.step(&nn::backward(loss)?)
    }

    pub fn step(&mut self, gradient: &GradStore) -> Result<()> {
        self.0.iter_mut().try_for_each(|one| one.step(gradient))
    }

    pub fn set_learning_rate(&mut self, lr: f64) {
        self.0.iter_mut().for_each(|one| one.set_learning_rate(lr));
    }

    pub fn to_bytes(&self, _: &VarMap) -> Result<Vec<u8>> {
        Ok(vec![0])
    }

    pub fn load_bytes(&mut self, _: &VarMap, _: &[u8]) -> Result<()> {
        candle_core::bail!("its state is not saved yet")
    }
}
