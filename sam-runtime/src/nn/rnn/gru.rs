//! Gated recurrent units.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::rnn::{GRUConfig, GRUState, RNN};

use super::recurrent::{Weights, states_of};
use crate::kernels::portable;
use crate::kernels::shapes::RnnCell;

/// `candle_nn::GRU`, as one operation for a whole sequence ([`RNN::seq`]).
///
/// On devices other than the CPU and CUDA it is computed by candle's operations, step by step.
#[allow(clippy::upper_case_acronyms, reason = "candle's name")]
#[derive(Clone, Debug)]
pub struct GRU {
    weights: Weights,
    hidden_dim: usize,
    config: GRUConfig,
    device: Device,
    dtype: DType,
}

impl GRU {
    /// With its variables from `vb`: `weight_ih_l0` of `(3 hidden_dim, in_dim)`, `weight_hh_l0` of `(3 hidden_dim, hidden_dim)`,
    /// `bias_ih_l0` and `bias_hh_l0` of `(3 hidden_dim)`, for r, z and n, as in `candle_nn` and PyTorch.
    ///
    /// # Errors
    /// If `vb` has variables of another shape.
    #[allow(clippy::needless_pass_by_value, reason = "candle's signature")]
    pub fn new(in_dim: usize, hidden_dim: usize, config: GRUConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let inits = [config.w_ih_init, config.w_hh_init];
        let weights =
            Weights::new(RnnCell::Gru, [in_dim, hidden_dim], "l0", inits, [config.b_ih_init, config.b_hh_init], &vb)?;
        Ok(Self { weights, hidden_dim, config, device: vb.device().clone(), dtype: vb.dtype() })
    }

    /// How it was made.
    #[must_use]
    pub fn config(&self) -> &GRUConfig {
        &self.config
    }

    fn slow_step(&self, input: &Tensor, state: &GRUState) -> Result<GRUState> {
        let h = portable::rnn::gru(self.weights.products(input, &state.h)?, &state.h)?;
        Ok(GRUState { h })
    }
}

/// Gated recurrent units, see [`GRU::new`].
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
/// let gru = nn::gru(16, 32, Default::default(), vb)?;
/// let x = Tensor::randn(0f32, 1., (8, 20, 16), &Device::Cpu)?;
/// let states = gru.seq(&x)?;
/// assert_eq!((states.len(), states[19].h().dims()), (20, &[8, 32][..]));
/// # Ok(())
/// # }
/// ```
pub fn gru(in_dim: usize, hidden_dim: usize, config: GRUConfig, vb: VarBuilder<'_>) -> Result<GRU> {
    GRU::new(in_dim, hidden_dim, config, vb)
}

impl RNN for GRU {
    type State = GRUState;

    fn zero_state(&self, batch_dim: usize) -> Result<GRUState> {
        Ok(GRUState { h: Tensor::zeros((batch_dim, self.hidden_dim), self.dtype, &self.device)? })
    }

    fn step(&self, input: &Tensor, in_state: &GRUState) -> Result<GRUState> {
        let states = self.seq_init(&input.unsqueeze(1)?, in_state)?;
        states.into_iter().next().map_or_else(|| candle_core::bail!("expected a state"), Ok)
    }

    fn seq_init(&self, input: &Tensor, init_state: &GRUState) -> Result<Vec<GRUState>> {
        let (_, steps, _) = input.dims3()?;
        let Some(tensors) = self.weights.run(input, &[&init_state.h])? else {
            let mut states: Vec<GRUState> = Vec::with_capacity(steps);
            for step in 0..steps {
                let input = input.narrow(1, step, 1)?.squeeze(1)?.contiguous()?;
                states.push(self.slow_step(&input, states.last().unwrap_or(init_state))?);
            }
            return Ok(states);
        };
        Ok(states_of(&tensors, 0..steps)?.into_iter().map(|h| GRUState { h }).collect())
    }

    /// Side by side, as in `candle_nn`: (batch, steps times `hidden_dim`).
    fn states_to_tensor(&self, states: &[GRUState]) -> Result<Tensor> {
        let states: Vec<&Tensor> = states.iter().map(GRUState::h).collect();
        Tensor::cat(&states, 1)
    }
}
