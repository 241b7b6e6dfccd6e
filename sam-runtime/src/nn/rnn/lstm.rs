//! Long short-term memory.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::rnn::{Direction, LSTMConfig, LSTMState, RNN};

use super::recurrent::{Weights, states_of};
use crate::kernels::portable;
use crate::kernels::shapes::RnnCell;

/// `candle_nn::LSTM`, as one operation for a whole sequence ([`RNN::seq`]).
///
/// On devices other than the CPU and CUDA it is computed by candle's operations, step by step.
#[allow(clippy::upper_case_acronyms, reason = "candle's name")]
#[derive(Clone, Debug)]
pub struct LSTM {
    weights: Weights,
    hidden_dim: usize,
    config: LSTMConfig,
    device: Device,
    dtype: DType,
}

impl LSTM {
    /// With its variables from `vb`: `weight_ih_l0` of `(4 hidden_dim, in_dim)`, `weight_hh_l0` of `(4 hidden_dim, hidden_dim)`,
    /// `bias_ih_l0` and `bias_hh_l0` of `(4 hidden_dim)`, for the gates i, f, g and o, as in `candle_nn` and PyTorch.
    ///
    /// # Errors
    /// If `vb` has variables of another shape.
    #[allow(clippy::needless_pass_by_value, reason = "candle's signature")]
    pub fn new(in_dim: usize, hidden_dim: usize, config: LSTMConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let reverse = match config.direction {
            Direction::Forward => "",
            Direction::Backward => "_reverse",
        };
        let end = format!("l{}{reverse}", config.layer_idx);
        let inits = [config.w_ih_init, config.w_hh_init];
        let weights =
            Weights::new(RnnCell::Lstm, [in_dim, hidden_dim], &end, inits, [config.b_ih_init, config.b_hh_init], &vb)?;
        Ok(Self { weights, hidden_dim, config, device: vb.device().clone(), dtype: vb.dtype() })
    }

    /// How it was made.
    #[must_use]
    pub fn config(&self) -> &LSTMConfig {
        &self.config
    }

    fn slow_step(&self, input: &Tensor, state: &LSTMState) -> Result<LSTMState> {
        let [h, c] = portable::rnn::lstm(self.weights.products(input, &state.h)?, &state.c)?;
        Ok(LSTMState { h, c })
    }
}

/// A long short-term memory, see [`LSTM::new`].
///
/// # Errors
/// If `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use sam_runtime::nn::{self, RNN};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let lstm = nn::lstm(16, 32, Default::default(), vb)?;
/// let x = Tensor::randn(0f32, 1., (8, 20, 16), &Device::Cpu)?;
/// let states = lstm.seq(&x)?;
/// assert_eq!((states.len(), lstm.states_to_tensor(&states)?.dims()), (20, &[8, 20, 32][..]));
/// # Ok(())
/// # }
/// ```
pub fn lstm(in_dim: usize, hidden_dim: usize, config: LSTMConfig, vb: VarBuilder<'_>) -> Result<LSTM> {
    LSTM::new(in_dim, hidden_dim, config, vb)
}

impl RNN for LSTM {
    type State = LSTMState;

    fn zero_state(&self, batch_dim: usize) -> Result<LSTMState> {
        let zeros = Tensor::zeros((batch_dim, self.hidden_dim), self.dtype, &self.device)?;
        Ok(LSTMState { h: zeros.clone(), c: zeros })
    }

    fn step(&self, input: &Tensor, in_state: &LSTMState) -> Result<LSTMState> {
        let states = self.seq_init(&input.unsqueeze(1)?, in_state)?;
        states.into_iter().next().map_or_else(|| candle_core::bail!("expected a state"), Ok)
    }

    fn seq_init(&self, input: &Tensor, init_state: &LSTMState) -> Result<Vec<LSTMState>> {
        let (_, steps, _) = input.dims3()?;
        let Some(tensors) = self.weights.run(input, &[&init_state.h, &init_state.c])? else {
            let mut states: Vec<LSTMState> = Vec::with_capacity(steps);
            for step in 0..steps {
                let input = input.narrow(1, step, 1)?.squeeze(1)?.contiguous()?;
                states.push(self.slow_step(&input, states.last().unwrap_or(init_state))?);
            }
            return Ok(states);
        };
        let (all_h, all_c) = (states_of(&tensors, 0..steps)?, states_of(&tensors, steps..2 * steps)?);
        Ok(all_h.into_iter().zip(all_c).map(|(h, c)| LSTMState { h, c }).collect())
    }

    fn states_to_tensor(&self, states: &[LSTMState]) -> Result<Tensor> {
        let states: Vec<&Tensor> = states.iter().map(LSTMState::h).collect();
        Tensor::stack(&states, 1)
    }
}
