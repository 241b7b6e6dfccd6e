//! cuDNN's graph API, as far as a convolution needs it: an operation, its execution plans, and running one.
//! <https://docs.nvidia.com/deeplearning/cudnn/backend/latest/api/cudnn-graph-library.html>
//!
//! The legacy API has a handful of algorithms, and only one for each gradient in NHWC. On Hopper the graph API has
//! thirty to forty plans there, ordered by cuDNN's heuristic, those for the tensor cores first. PyTorch uses it in the
//! same way. A test that needs cuDNN but no GPU makes the plans for a described device.

use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendBehaviorNote_t as BehaviorNote, cudnnBackendDescriptorType_t as Kind, cudnnBackendExecute,
    cudnnBackendHeurMode_t as Heuristic, cudnnBackendNumericalNote_t as Numerical, cudnnConvolutionMode_t,
    cudnnDataType_t,
};
use candle_core::{DType, Result};

use super::backend::{Descriptor, Handle, Value, check, integer, integers};
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

/// Alignment of all operands, in bytes.
pub(super) const ALIGNMENT: usize = 16;

/// The device to plan for.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Of(&'a Handle),
    /// A description of device properties.
    #[cfg_attr(not(test), expect(dead_code, reason = "a step has a device"))]
    Described(&'a Descriptor),
}

/// An execution plan of an operation.
pub(super) struct Plan {
    descriptor: Descriptor,
    /// The plan may refer to it.
    _config: Descriptor,
    /// Bytes of workspace.
    pub(super) bytes: usize,
}

impl Plan {
    fn new(config: Descriptor, target: Target<'_>) -> Result<Self> {
        let device = match target {
            Target::Of(handle) => (Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Value::Handle(handle)),
            Target::Described(device) => (Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, Value::Descriptor(device)),
        };
        let config_of_plan = (Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, Value::Descriptor(&config));
        let descriptor = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &[config_of_plan, device])?;
        let bytes = descriptor.integer(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        Ok(Self { descriptor, _config: config, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) })
    }

    /// # Safety
    ///
    /// The addresses must be those of the operands of the operation, in its dtype, and of [`bytes`](Self::bytes) bytes
    /// of workspace, and stay valid until the device has run the plan.
    pub(super) unsafe fn run(&self, handle: &Handle, at: Addresses, workspace: u64) -> Result<()> {
        let operands = at.operands(workspace)?;
        // SAFETY: handle, plan and operands are valid, finalized descriptors, and the caller guarantees the addresses.
        check(unsafe { cudnnBackendExecute(handle.handle, self.descriptor.0, operands.0) })
    }
}

impl Addresses {
    fn operands(self, workspace: u64) -> Result<Descriptor> {
        let attributes = [
            (Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Value::Integers(&[X, W, Y])),
            (Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, Value::Addresses(&[self.x, self.w, self.y])),
            (Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, Value::Addresses(&[workspace])),
        ];
        Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &attributes)
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
        let graph = self.graph(target)?;
        let guessed = move |mode| match heuristic_configs(&graph, mode, target) {
            Ok(configs) => configs.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        let plan = move |config: Result<Descriptor>| -> Result<Option<Plan>> {
            let config = config?;
            if self.admits(&config)? { Plan::new(config, target).map(Some) } else { Ok(None) }
        };
        let modes = [Heuristic::CUDNN_HEUR_MODE_A, Heuristic::CUDNN_HEUR_MODE_FALLBACK].into_iter();
        Ok(modes.flat_map(guessed).map(plan).filter_map(Result::transpose))
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
        let node = Descriptor::new(kind, &attributes)?;
        let mut attributes = vec![(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, Value::Descriptor(&node))];
        if let Target::Of(handle) = target {
            attributes.push((Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Value::Handle(handle)));
        }
        Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, &attributes)
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
    fn admits(&self, config: &Descriptor) -> Result<bool> {
        let engine = config.descriptors(Name::CUDNN_ATTR_ENGINECFG_ENGINE, Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        let Some(engine) = engine.first() else { return Ok(false) };
        let notes = engine.notes(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, Type::CUDNN_TYPE_NUMERICAL_NOTE)?;
        let behavior = engine.notes(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, Type::CUDNN_TYPE_BEHAVIOR_NOTE)?;
        let not = |note: Numerical| !notes.contains(&(note as u32));
        Ok(not(Numerical::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
            && not(Numerical::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION)
            && not(Numerical::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)
            && (not(Numerical::CUDNN_NUMERICAL_NOTE_TENSOR_CORE) || self.dtype != DType::F32 || self.tf32)
            && !behavior.contains(&(BehaviorNote::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as u32)))
    }
}

/// Engine configurations in the order of a heuristic.
fn heuristic_configs(graph: &Descriptor, mode: Heuristic, target: Target<'_>) -> Result<Vec<Descriptor>> {
    let mut attributes = vec![
        (Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, Value::Descriptor(graph)),
        (Name::CUDNN_ATTR_ENGINEHEUR_MODE, Value::Heuristic(mode)),
    ];
    if let Target::Described(device) = target {
        attributes.push((Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, Value::Descriptor(device)));
    }
    let heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &attributes)?;
    heuristics.descriptors(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
}

fn data_type(dtype: DType) -> Result<cudnnDataType_t> {
    match dtype {
        DType::F32 => Ok(cudnnDataType_t::CUDNN_DATA_FLOAT),
        DType::F64 => Ok(cudnnDataType_t::CUDNN_DATA_DOUBLE),
        DType::F16 => Ok(cudnnDataType_t::CUDNN_DATA_HALF),
        DType::BF16 => Ok(cudnnDataType_t::CUDNN_DATA_BFLOAT16),
        dtype => candle_core::bail!("expected images of f32, f64, f16 or bf16, found {dtype:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The properties of an H200, in cuDNN's JSON format.
    const H200: &str = r#"{"deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "deviceName": "NVIDIA H200",
        "totalGlobalMem": 150754820096, "multiProcessorCount": 132, "warpSize": 32, "maxThreadsPerBlock": 1024,
        "maxThreadsPerSM": 2048, "maxCtasPerSM": 32, "maxGridSize": [2147483647, 65535, 65535],
        "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
        "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
        "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000,
        "memClockRateKHz": 3201000, "l2CacheSize": 62914560}"#;

    fn side(input: usize, kernel: usize, stride: usize) -> ConvDim {
        let padding = kernel / 2;
        ConvDim { input, kernel, output: (input + 2 * padding - kernel) / stride + 1, stride, padding, dilation: 1 }
    }

    /// Against NVIDIA's library: it accepts the descriptors, and has plans for every convolution of the examples'
    /// networks.
    #[test]
    #[ignore = "it takes cuDNN, but no GPU: `tests/gpu.sh plans`"]
    fn plans_for_a_device_that_is_not_here() {
        let device = [(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, Value::Text(H200))];
        let device = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &device).unwrap();
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
        assert!(Addresses { x: 256, w: 512, y: 768 }.operands(1024).is_ok());
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
