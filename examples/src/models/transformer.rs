//! Networks of tokens: vision transformers (Dosovitskiy et al. 2021), MLP-Mixers (Tolstikhin et al. 2021) and a GPT
//! (Radford et al. 2019). Their blocks normalize before each branch.
//!
//! Everything between is of shape (n, tokens, width). The variables of the first two have the names and shapes of
//! timm, so its weights can be the `start` of a recipe.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Init, Module, ModuleT as _, VarBuilder};
use sam_runtime::nn::{self, Dropout, RngStream};

use super::layers::LayerSet;
use super::net::Net;

/// The ε of timm's vision transformers and mixers at 224 pixels.
const EPS_AT_224: f64 = 1e-6;

/// PyTorch's ε.
const EPS: f64 = 1e-5;

/// The ε for patches of this side.
fn eps(patch: usize) -> f64 {
    if patch > 4 { EPS_AT_224 } else { EPS }
}

/// The largest number of heads, at most that of the name, which divides a width.
fn heads_of(width: usize, most: usize) -> usize {
    (1..=most).rev().find(|heads| width.is_multiple_of(*heads)).unwrap_or(1)
}

/// Two linear layers with a GELU between.
struct Mlp<K: LayerSet> {
    fc1: K::Linear,
    fc2: K::Linear,
}

impl<K: LayerSet> Mlp<K> {
    fn new(width: usize, hidden: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { fc1: K::linear(width, hidden, vb.pp("fc1"))?, fc2: K::linear(hidden, width, vb.pp("fc2"))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&K::gelu(&self.fc1.forward(x)?)?)
    }
}

/// Dropout of the outputs of a block's branches, and stochastic depth (Huang et al. 2016), which leaves out a branch for an
/// example.
#[derive(Default)]
struct Noise {
    dropout: Option<Dropout>,
    depth: Option<Dropout>,
}

impl Noise {
    /// Of one of `blocks` blocks; stochastic depth grows linearly from the first to the last.
    fn of(block: usize, blocks: usize, [dropout, depth]: [f64; 2], draws: &RngStream) -> Self {
        let share = block as f64 / (blocks.max(2) - 1) as f64;
        let layer = |p: f64| (p > 0.0).then(|| Dropout::with_rng(p as f32, draws.clone()));
        Self { dropout: layer(dropout), depth: layer(depth * share) }
    }

    /// x + branch.
    fn add<K: LayerSet>(&self, x: &Tensor, branch: Tensor, train: bool) -> Result<Tensor> {
        let mut branch = match &self.dropout {
            Some(dropout) if train => dropout.forward_t(&branch, train)?,
            _ => branch,
        };
        if let Some(depth) = self.depth.as_ref().filter(|_| train) {
            let kept = depth.forward_t(&Tensor::ones((x.dim(0)?, 1, 1), branch.dtype(), branch.device())?, train)?;
            branch = branch.broadcast_mul(&kept)?;
        }
        K::add(x, &branch)
    }
}

/// Attention, then an MLP of four times the width.
struct Block<K: LayerSet> {
    norm1: K::LayerNorm,
    qkv: K::Linear,
    proj: K::Linear,
    norm2: K::LayerNorm,
    mlp: Mlp<K>,
    heads: usize,
    causal: bool,
    noise: Noise,
}

impl<K: LayerSet> Block<K> {
    fn new(width: usize, heads: usize, causal: bool, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            norm1: K::layer_norm(width, eps, vb.pp("norm1"))?,
            qkv: K::linear(width, 3 * width, vb.pp("attn.qkv"))?,
            proj: K::linear(width, width, vb.pp("attn.proj"))?,
            norm2: K::layer_norm(width, eps, vb.pp("norm2"))?,
            mlp: Mlp::new(width, 4 * width, &vb.pp("mlp"))?,
            heads: heads_of(width, heads),
            causal,
            noise: Noise::default(),
        })
    }

    fn stack(depth: usize, block: impl Fn(&VarBuilder<'_>) -> Result<Self>, vb: &VarBuilder<'_>) -> Result<Vec<Self>> {
        (0..depth).map(|i| block(&vb.pp(format!("blocks.{i}")))).collect()
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let mixed = K::attention(&qkv, self.heads, self.causal)?;
        let x = self.noise.add::<K>(x, self.proj.forward(&mixed)?, train)?;
        let y = self.mlp.forward(&self.norm2.forward(&x)?)?;
        self.noise.add::<K>(&x, y, train)
    }
}

/// The linear projection of patches. Its weight has the shape of a convolution's.
struct Patches {
    weight: Tensor,
    bias: Tensor,
    side: usize,
}

impl Patches {
    fn new([channels, height, width]: [usize; 3], side: usize, to: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        if !height.is_multiple_of(side) || !width.is_multiple_of(side) || height * width == 0 {
            bail!(
                "expected images whose sides are multiples of {side} pixels, those of a patch, found {height} x {width}"
            )
        }
        let weight = vb.get_with_hints((to, channels, side, side), "weight", Init::Const(0.0))?;
        Ok(Self { weight, bias: vb.get_with_hints(to, "bias", Init::Const(0.0))?, side })
    }

    /// From images to (n, patches, width).
    fn forward<K: LayerSet>(&self, x: &Tensor) -> Result<Tensor> {
        let ((n, channels, height, width), side) = (x.dims4()?, self.side);
        let (rows, columns) = (height / side, width / side);
        let x = x.reshape((n, channels, rows, side, columns, side))?.permute((0, 2, 4, 1, 3, 5))?.contiguous()?;
        let layer = K::linear_of(self.weight.flatten_from(1)?, Some(self.bias.clone()));
        layer.forward(&x.reshape((n, rows * columns, channels * side * side))?)
    }
}

/// A vision transformer: patches and a class token, whose features are those of the network.
pub(super) struct Vit<K: LayerSet> {
    patches: Patches,
    token: Tensor,
    places: Tensor,
    blocks: Vec<Block<K>>,
    norm: K::LayerNorm,
}

impl<K: LayerSet> Vit<K> {
    const DEPTH: usize = 12;

    pub(super) fn new(
        shape: [usize; 3],
        patch: usize,
        width: usize,
        heads: usize,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let patches = Patches::new(shape, patch, width, &vb.pp("patch_embed.proj"))?;
        let count = (shape[1] / patch) * (shape[2] / patch);
        Ok(Self {
            patches,
            token: vb.get_with_hints((1, 1, width), "cls_token", Init::Const(0.0))?,
            places: vb.get_with_hints((1, count + 1, width), "pos_embed", Init::Const(0.0))?,
            blocks: Block::stack(Self::DEPTH, |vb| Block::new(width, heads, false, eps(patch), vb), vb)?,
            norm: K::layer_norm(width, eps(patch), vb.pp("norm"))?,
        })
    }
}

impl<K: LayerSet> Net for Vit<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let patches = self.patches.forward::<K>(x)?;
        let (n, _, width) = patches.dims3()?;
        let [token, places] = [&self.token, &self.places].map(|var| nn::to_dtype(var, patches.dtype()));
        let mut x = Tensor::cat(&[&token?.broadcast_as((n, 1, width))?, &patches], 1)?.broadcast_add(&places?)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        // Each token is normalized by itself, so it is enough to normalize this one.
        self.norm.forward(&x.narrow(1, 0, 1)?.reshape((n, width))?)
    }

    fn regularize(&mut self, rates: [f64; 2], draws: &RngStream) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.noise = Noise::of(i, Self::DEPTH, rates, draws);
        }
    }
}

/// A mixer: MLPs over the tokens of each channel, and over the channels of each token. Its features are the means of the tokens.
pub(super) struct Mixer<K: LayerSet> {
    patches: Patches,
    blocks: Vec<MixerBlock<K>>,
    norm: K::LayerNorm,
}

struct MixerBlock<K: LayerSet> {
    norm1: K::LayerNorm,
    tokens: Mlp<K>,
    norm2: K::LayerNorm,
    channels: Mlp<K>,
    noise: Noise,
}

impl<K: LayerSet> Mixer<K> {
    pub(super) fn new(
        shape: [usize; 3],
        patch: usize,
        width: usize,
        depth: usize,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let patches = Patches::new(shape, patch, width, &vb.pp("stem.proj"))?;
        let count = (shape[1] / patch) * (shape[2] / patch);
        let block = |i| {
            let vb = vb.pp(format!("blocks.{i}"));
            Ok(MixerBlock {
                norm1: K::layer_norm(width, eps(patch), vb.pp("norm1"))?,
                tokens: Mlp::new(count, width.div_ceil(2), &vb.pp("mlp_tokens"))?,
                norm2: K::layer_norm(width, eps(patch), vb.pp("norm2"))?,
                channels: Mlp::new(width, 4 * width, &vb.pp("mlp_channels"))?,
                noise: Noise::default(),
            })
        };
        Ok(Self {
            patches,
            blocks: (0..depth).map(block).collect::<Result<_>>()?,
            norm: K::layer_norm(width, eps(patch), vb.pp("norm"))?,
        })
    }
}

impl<K: LayerSet> Net for Mixer<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.patches.forward::<K>(x)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        self.norm.forward(&x)?.mean(1)
    }

    fn regularize(&mut self, rates: [f64; 2], draws: &RngStream) {
        let depth = self.blocks.len();
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.noise = Noise::of(i, depth, rates, draws);
        }
    }
}

impl<K: LayerSet> MixerBlock<K> {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let by_channel = self.norm1.forward(x)?.transpose(1, 2)?.contiguous()?;
        let mixed = self.tokens.forward(&by_channel)?.transpose(1, 2)?.contiguous()?;
        let x = self.noise.add::<K>(x, mixed, train)?;
        let y = self.channels.forward(&self.norm2.forward(&x)?)?;
        self.noise.add::<K>(&x, y, train)
    }
}

/// A language model, whose last layer is the table of its tokens.
pub(super) struct Gpt<K: LayerSet> {
    tokens: K::Embedding,
    places: K::Embedding,
    length: usize,
    blocks: Vec<Block<K>>,
    norm: K::LayerNorm,
    dropout: Option<Dropout>,
    dtype: DType,
}

impl<K: LayerSet> Gpt<K> {
    pub(super) const DEPTH: usize = 6;
    const HEADS: usize = 8;

    /// For as many different tokens, and texts of at most this length.
    pub(super) fn new(
        vocabulary: usize,
        length: usize,
        width: usize,
        dtype: DType,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        Ok(Self {
            tokens: K::embedding(vocabulary, width, vb.pp("tokens"))?,
            places: K::embedding(length, width, vb.pp("places"))?,
            length,
            blocks: Block::stack(Self::DEPTH, |vb| Block::new(width, Self::HEADS, true, EPS, vb), vb)?,
            norm: K::layer_norm(width, EPS, vb.pp("norm"))?,
            dropout: None,
            dtype,
        })
    }

    /// The last layer.
    pub(super) fn head(vocabulary: usize, width: usize, vb: &VarBuilder<'_>) -> Result<K::Linear> {
        Ok(K::linear_of(vb.get((vocabulary, width), "tokens.weight")?, None))
    }
}

impl<K: LayerSet> Net for Gpt<K> {
    /// From tokens (n, length) to a row for each.
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let &[n, length] = x.dims() else { bail!("expected a text, tokens (n, length), found {:?}", x.dims()) };
        if !x.dtype().is_int() || length > self.length || x.elem_count() == 0 {
            bail!("expected integer tokens (n, 1 to {}), found {:?} of {:?}", self.length, x.dims(), x.dtype())
        }
        let places: Vec<u32> = (0..n).flat_map(|_| 0..length as u32).collect();
        let places = Tensor::from_vec(places, (n, length), x.device())?;
        let x = K::add(&self.tokens.forward(x)?, &self.places.forward(&places)?)?;
        let mut x = nn::to_dtype(&x, self.dtype)?;
        if let Some(dropout) = &self.dropout {
            x = dropout.forward_t(&x, train)?;
        }
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        self.norm.forward(&x)?.flatten_to(1)
    }

    fn regularize(&mut self, rates: [f64; 2], draws: &RngStream) {
        self.dropout = Noise::of(0, Self::DEPTH, rates, draws).dropout;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.noise = Noise::of(i, Self::DEPTH, rates, draws);
        }
    }
}
