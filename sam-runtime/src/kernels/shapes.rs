//! The sizes of an operation, shared by all backends.

use std::ops::Range;

use candle_core::Shape;

/// A dimension of a contiguous tensor, and how many elements lie outside and inside of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DimShape {
    pub(crate) outer: usize,
    pub(crate) size: usize,
    pub(crate) inner: usize,
}

impl DimShape {
    pub(crate) fn new(dims: &[usize], dim: usize) -> Self {
        let product = |dims: &[usize]| dims.iter().product();
        Self { outer: product(&dims[..dim]), size: dims[dim], inner: product(&dims[dim + 1..]) }
    }
}

/// A pooling of images (n, channels, height, width).
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolShape {
    /// The largest element of each window; otherwise their mean.
    pub(crate) max: bool,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    /// Height and width.
    pub(crate) input: [usize; 2],
    /// Rows and columns.
    pub(crate) output: [usize; 2],
    /// n times channels.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the kernels of CUDA take it"))]
    pub(crate) planes: usize,
    /// From one pixel of a plane to the next: 1 in NCHW, the number of channels in NHWC.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the kernels of CUDA take it"))]
    pub(crate) step: usize,
}

impl PoolShape {
    /// The rows or columns of the window of an output that lie in the image.
    fn window(&self, output: usize, input: usize) -> Range<usize> {
        let start = output * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel).saturating_sub(self.padding).min(input)
    }

    /// Calls `f` with each output of a plane and the indices of its window.
    pub(super) fn windows(&self, mut f: impl FnMut(usize, &mut dyn Iterator<Item = usize>)) {
        let ([height, width], [rows, columns]) = (self.input, self.output);
        for (y, x) in (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x))) {
            let across = self.window(x, width);
            let mut indices = self.window(y, height).flat_map(|y| across.clone().map(move |x| y * width + x));
            f(y * columns + x, &mut indices);
        }
    }

    /// What an element of a window counts in their mean.
    pub(super) fn share(&self) -> f64 {
        1.0 / (self.kernel * self.kernel) as f64
    }
}

/// One of the two dimensions of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConvDim {
    pub(crate) input: usize,
    pub(crate) kernel: usize,
    pub(crate) output: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
}

/// The sizes of a convolution, none of them 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConvShape {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) filters: usize,
    pub(crate) groups: usize,
    pub(crate) height: ConvDim,
    pub(crate) width: ConvDim,
}

impl ConvShape {
    pub(super) fn taps(&self) -> usize {
        self.height.kernel * self.width.kernel
    }

    pub(super) fn input(&self) -> usize {
        self.height.input * self.width.input
    }

    pub(super) fn output(&self) -> usize {
        self.height.output * self.width.output
    }

    /// Pixels of an output.
    pub(crate) fn pixels(&self) -> [usize; 2] {
        [self.height.output, self.width.output]
    }

    /// Channels and filters of a group.
    pub(super) fn in_group(&self) -> [usize; 2] {
        [self.channels / self.groups, self.filters / self.groups]
    }
}

/// How to normalize.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchNormShape {
    pub(crate) channels: usize,
    /// Elements of one channel of one image.
    pub(crate) plane: usize,
    pub(crate) eps: f64,
    /// Whether the mean is subtracted.
    pub(crate) centered: bool,
    pub(crate) relu: bool,
}

/// How to normalize rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowNormShape {
    pub(crate) columns: usize,
    pub(crate) eps: f64,
    /// Whether the mean is subtracted.
    pub(crate) centered: bool,
}

/// How to normalize images (n, channels, ..).
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNormShape {
    pub(crate) channels: usize,
    pub(crate) groups: usize,
    /// Elements of one channel of one image.
    pub(crate) plane: usize,
    pub(crate) eps: f64,
}

/// Scaled dot product attention: softmax(scale q kᵀ + mask) v, for each batch and head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    /// Of k and v: each is for `heads / kv_heads` heads of q.
    pub(crate) kv_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// Of q and k.
    pub(crate) dim: usize,
    /// Of v and the output.
    pub(crate) v_dim: usize,
    pub(crate) scale: f64,
    /// Scores s become c tanh(s / c). 0: they do not.
    pub(crate) softcap: f64,
    /// Query i sees the keys up to i + this.
    pub(crate) causal: Option<isize>,
    /// The probability that a weight is dropped, and the seed of the mask.
    pub(crate) drop_p: f32,
    pub(crate) seed: u64,
    /// Whether q, k and v are one tensor (batch, tokens, 3 heads dim).
    pub(crate) packed: bool,
}

/// Where the rows of each head are in a tensor's memory, in elements. Those of a row are side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HeadStrides {
    pub(crate) first: usize,
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) token: usize,
}

impl AttentionShape {
    /// Heads of q for each head of k and v.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The number of keys that a query sees.
    pub(crate) fn visible(&self, query: usize) -> usize {
        self.causal.map_or(self.keys, |offset| self.keys.min((query + 1).saturating_add_signed(offset)))
    }

    /// How many of the arguments are q, k and v.
    pub(crate) fn inputs(&self) -> usize {
        if self.packed { 1 } else { 3 }
    }

    /// Those of the output (batch, queries, heads `v_dim`).
    pub(crate) fn output(&self) -> HeadStrides {
        contiguous(&[self.batch, self.queries, self.heads * self.v_dim], self.v_dim)
    }

    /// Those of q, k and v, from the dimensions and strides of the arguments. Of four dimensions these are (batch, heads, tokens,
    /// dim), of three (batch, tokens, heads dim).
    pub(crate) fn strides(&self, args: &[(&[usize], &[usize])]) -> [HeadStrides; 3] {
        let dims = [self.dim, self.dim, self.v_dim];
        std::array::from_fn(|i| {
            let (shape, strides) = args[if self.packed { 0 } else { i }];
            let first = if self.packed { i * self.heads * self.dim } else { 0 };
            match *strides {
                [batch, head, token, _] => HeadStrides { first, batch, head, token },
                [batch, token, _] => HeadStrides { first, batch, head: dims[i], token },
                _ => contiguous(shape, dims[i]),
            }
        })
    }

    /// Those of contiguous tensors of the arguments' shapes.
    pub(crate) fn gradient_strides(&self, args: &[&[usize]]) -> [HeadStrides; 3] {
        let strides: Vec<Vec<usize>> = args.iter().map(|shape| contiguous_strides(shape)).collect();
        let pairs: Vec<(&[usize], &[usize])> = args.iter().copied().zip(strides.iter().map(Vec::as_slice)).collect();
        self.strides(&pairs)
    }
}

fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

/// Of (batch, tokens, heads dim).
fn contiguous(shape: &[usize], dim: usize) -> HeadStrides {
    let token = shape.last().copied().unwrap_or_default();
    HeadStrides { first: 0, batch: shape.iter().skip(1).product(), head: dim, token }
}

/// x as (batch, heads, time, 2 half) or (batch, time, heads, 2 half), whose pairs turn by angles (time, half) or (batch, time, half).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RotaryShape {
    /// A pair is two neighbors; otherwise it is an element of the first half and one of the second.
    pub(crate) interleaved: bool,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) time: usize,
    pub(crate) half: usize,
    /// Whether the heads of one time are neighbors.
    pub(crate) heads_inside: bool,
    /// Elements from one batch to the next in cos and in sin, 0 where all have the same angles.
    pub(crate) steps: [usize; 2],
}

impl RotaryShape {
    pub(crate) fn shape(&self) -> Shape {
        let Self { batch, heads, time, half, .. } = *self;
        if self.heads_inside { (batch, time, heads, 2 * half).into() } else { (batch, heads, time, 2 * half).into() }
    }

    /// Where the angles of a row begin in cos and in sin.
    pub(super) fn angles(&self, row: usize) -> [usize; 2] {
        let (time, batch) = (if self.heads_inside { row / self.heads } else { row }, row / (self.heads * self.time));
        self.steps.map(|step| batch * step + time % self.time * self.half)
    }
}

/// The elements that one element of an interpolated side lies between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Between {
    pub(crate) low: usize,
    pub(crate) high: usize,
    /// Of the second; that of the first is 1 less this.
    pub(crate) weight: f64,
}

/// One side of images that change their size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resize {
    pub(crate) input: usize,
    pub(crate) output: usize,
    /// Input elements for one of the output.
    pub(crate) scale: f64,
    pub(crate) mode: ResizeMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResizeMode {
    Nearest,
    Linear,
    /// The first and the last elements stay where they are.
    AlignedCorners,
}

#[allow(clippy::cast_sign_loss, reason = "places are not negative")]
impl Resize {
    /// As candle and PyTorch have it. `factor` is the one that the caller gave instead of a size.
    pub(crate) fn new(input: usize, output: usize, factor: Option<f64>, mode: ResizeMode) -> Self {
        let scale = match (mode, factor) {
            (ResizeMode::AlignedCorners, _) if output < 2 => 0.0,
            (ResizeMode::AlignedCorners, _) => (input - 1) as f64 / (output - 1) as f64,
            (_, Some(factor)) => 1.0 / factor,
            (_, None) => input as f64 / output as f64,
        };
        Self { input, output, scale, mode }
    }

    pub(crate) fn between(&self, output: usize) -> Between {
        let (last, output) = (self.input - 1, output as f64);
        let place = match self.mode {
            ResizeMode::Nearest => {
                let low = last.min((output * self.scale) as usize);
                return Between { low, high: low, weight: 0.0 };
            }
            ResizeMode::Linear => (self.scale * (output + 0.5) - 0.5).max(0.0),
            ResizeMode::AlignedCorners => self.scale * output,
        };
        let low = last.min(place as usize);
        Between { low, high: last.min(low + 1), weight: (place - low as f64).clamp(0.0, 1.0) }
    }
}

/// An interpolation of images (.., height, width).
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpsampleShape {
    pub(crate) rows: Resize,
    pub(crate) columns: Resize,
    /// n times channels.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the kernels of CUDA take it"))]
    pub(crate) planes: usize,
    /// From one pixel of a plane to the next: 1 in NCHW, the number of channels in NHWC.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the kernels of CUDA take it"))]
    pub(crate) step: usize,
}

/// A recurrent layer that runs over a batch of sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RnnShape {
    pub(crate) cell: RnnCell,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    pub(crate) inputs: usize,
    pub(crate) hidden: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RnnCell {
    Lstm,
    Gru,
}

impl RnnCell {
    /// Rows of a weight, over the hidden size.
    pub(crate) fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }

    /// Tensors of a state.
    pub(crate) fn states(self) -> usize {
        match self {
            Self::Lstm => 2,
            Self::Gru => 1,
        }
    }
}

/// Numbers of each cell that a forward pass keeps: the gates of an LSTM; r, z, n and what r multiplies of a GRU.
pub(crate) const RNN_KEPT: usize = 4;

/// From one element of a contiguous mask to the next, by batch, head, query and key.
pub(crate) fn mask_strides((batch, heads, queries, keys): (usize, usize, usize, usize)) -> [usize; 4] {
    let of = |size: usize, stride: usize| if size == 1 { 0 } else { stride };
    [of(batch, heads * queries * keys), of(heads, queries * keys), of(queries, keys), of(keys, 1)]
}
