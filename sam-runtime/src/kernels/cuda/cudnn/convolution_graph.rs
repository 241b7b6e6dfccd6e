//! The operation graph of a convolution.
//!
//! The legacy API has a handful of algorithms, and only one for each gradient in NHWC. On Hopper the graph API has
//! thirty to forty plans there, ordered by cuDNN's heuristic, those for the tensor cores first. PyTorch uses it in the
//! same way.

use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnConvolutionMode_t,
};
use candle_core::{DType, Result};

use super::backend::{Descriptor, Value, integer, integers};
use super::plan::{self, ALIGNMENT, Notes, Operand, Plan, Target, data_type};
use crate::core::image_layout::ImageLayout;
use crate::kernels::shapes::{ConvDim, ConvShape};

/// The output of a convolution, or one of its gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ConvOp {
    Forward,
    BackwardData,
    BackwardFilter,
}

/// What a plan depends on: the key of the plan cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operation {
    pub(super) op: ConvOp,
    pub(super) conv: ConvShape,
    pub(super) format: ImageLayout,
    pub(super) dtype: DType,
    /// Whether f32 products may use TF32.
    pub(super) tf32: bool,
}

/// The addresses of images, weight and outputs, or of their gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) y: u64,
}

impl Addresses {
    pub(super) fn operands(self) -> [Operand; 3] {
        [(X, self.x), (W, self.w), (Y, self.y)]
    }
}

/// The unique ids of the operands.
const X: i64 = 1;
const W: i64 = 2;
const Y: i64 = 3;

impl Operation {
    /// cuDNN's plans, best first by its heuristic, and its errors. Leaves out plans that are not deterministic,
    /// accumulate in less than f32, multiply f32 with reduced precision where that is not allowed, or are compiled at
    /// run time.
    pub(super) fn plans(&self, target: Target<'_>) -> Result<impl Iterator<Item = Result<Plan>>> {
        Ok(plan::plans(self.graph(target)?, target, |notes| self.admits(notes)))
    }

    /// A graph of one operation.
    fn graph(&self, target: Target<'_>) -> Result<Descriptor> {
        let ConvShape { images, channels, filters, groups, height, width } = self.conv;
        let x = self.tensor(X, [images, channels, height.input, width.input])?;
        let w = self.tensor(W, [filters, channels / groups, height.kernel, width.kernel])?;
        let y = self.tensor(Y, [images, filters, height.output, width.output])?;
        let convolution = self.convolution()?;

        let (kind, [x_name, w_name, y_name, convolution_name, alpha_name, beta_name]) = match self.op {
            ConvOp::Forward => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                ],
            ),
            ConvOp::BackwardData => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                ],
            ),
            ConvOp::BackwardFilter => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                ],
            ),
        };
        let [one, zero] = match self.dtype {
            DType::F64 => [Value::F64(1.0), Value::F64(0.0)],
            _ => [Value::F32(1.0), Value::F32(0.0)],
        };
        let attributes = [
            (x_name, Value::Descriptor(&x)),
            (w_name, Value::Descriptor(&w)),
            (y_name, Value::Descriptor(&y)),
            (convolution_name, Value::Descriptor(&convolution)),
            (alpha_name, one),
            (beta_name, zero),
        ];
        plan::operation_graph(&[Descriptor::new(kind, &attributes)?], target)
    }

    /// A tensor descriptor. Dimensions are in the order (n, c, h, w) for both layouts; only the strides differ.
    fn tensor(&self, name: i64, sizes: [usize; 4]) -> Result<Descriptor> {
        let [n, c, h, w] = integers(sizes)?;
        let strides = match self.format {
            ImageLayout::Nchw => [c * h * w, h * w, w, 1],
            ImageLayout::Nhwc => [c * h * w, 1, c * w, c],
        };
        let attributes = [
            (Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, Value::Integers(&[name])),
            (Name::CUDNN_ATTR_TENSOR_DATA_TYPE, Value::Type(data_type(self.dtype)?)),
            (Name::CUDNN_ATTR_TENSOR_DIMENSIONS, Value::Integers(&[n, c, h, w])),
            (Name::CUDNN_ATTR_TENSOR_STRIDES, Value::Integers(&strides)),
            (Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, Value::Integers(&[integer(ALIGNMENT)?])),
        ];
        Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR, &attributes)
    }

    fn convolution(&self) -> Result<Descriptor> {
        let sums = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let of_both = |f: fn(&ConvDim) -> usize| integers([&self.conv.height, &self.conv.width].map(f));
        let [paddings, strides, dilations] =
            [of_both(|side| side.padding)?, of_both(|side| side.stride)?, of_both(|side| side.dilation)?];
        let attributes = [
            (Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, Value::Type(data_type(sums)?)),
            (Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, Value::Mode(cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION)),
            (Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, Value::Integers(&[2])),
            (Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, Value::Integers(&paddings)),
            (Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, Value::Integers(&paddings)),
            (Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, Value::Integers(&strides)),
            (Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, Value::Integers(&dilations)),
        ];
        Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, &attributes)
    }

    /// Whether an engine's notes permit it.
    fn admits(&self, notes: &Notes) -> bool {
        notes.is_exact()
            && !notes.is_compiled_at_run_time()
            && (!notes.on_tensor_cores() || self.dtype != DType::F32 || self.tf32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(input: usize, kernel: usize, stride: usize) -> ConvDim {
        let padding = kernel / 2;
        ConvDim { input, kernel, output: (input + 2 * padding - kernel) / stride + 1, stride, padding, dilation: 1 }
    }

    /// Against NVIDIA's library: it accepts the descriptors, and has plans for every convolution of the examples'
    /// networks.
    #[test]
    #[ignore = "it takes cuDNN, but no GPU: `tests/gpu.sh plans`"]
    fn plans_for_a_device_that_is_not_here() {
        let device = plan::h200();
        // Channels, filters, groups, pixels, kernel, stride: the stem, the blocks and the shortcuts of WRN-28-10, the
        // last block of ResNet-18, one of ResNeXt, and odd sizes.
        let shapes = [
            (3, 16, 1, 32, 3, 1),
            (16, 160, 1, 32, 3, 1),
            (160, 160, 1, 32, 3, 1),
            (160, 320, 1, 32, 3, 2),
            (640, 640, 1, 8, 3, 1),
            (16, 160, 1, 32, 1, 1),
            (320, 640, 1, 16, 1, 2),
            (512, 512, 1, 4, 3, 1),
            (128, 128, 32, 32, 3, 1),
            (5, 7, 1, 13, 5, 3),
        ];
        let types =
            [(DType::BF16, false), (DType::F16, false), (DType::F32, true), (DType::F32, false), (DType::F64, false)];
        assert!(plan::variant_pack(&Addresses { x: 256, w: 512, y: 768 }.operands(), 1024).is_ok());
        for (channels, filters, groups, pixels, kernel, stride) in shapes {
            let side = side(pixels, kernel, stride);
            let conv = ConvShape { images: 256, channels, filters, groups, height: side, width: side };
            for (dtype, tf32) in types {
                for format in [ImageLayout::Nchw, ImageLayout::Nhwc] {
                    for op in [ConvOp::Forward, ConvOp::BackwardData, ConvOp::BackwardFilter] {
                        let operation = Operation { op, conv, format, dtype, tf32 };
                        let plans = operation.plans(Target::Described(&device)).unwrap().flatten().count();
                        println!("{operation:?}: {plans} plans");
                        assert!(plans > 0, "{operation:?}");
                    }
                }
            }
        }
    }
}
