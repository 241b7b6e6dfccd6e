//! Execution plans of an operation graph. A test that needs cuDNN but no GPU makes them for a described device.
//! <https://docs.nvidia.com/deeplearning/cudnn/backend/latest/api/cudnn-graph-library.html>

use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendBehaviorNote_t as BehaviorNote, cudnnBackendDescriptorType_t as Kind, cudnnBackendExecute,
    cudnnBackendHeurMode_t as Heuristic, cudnnBackendNumericalNote_t as Numerical, cudnnDataType_t,
};
use candle_core::{DType, Result};

use super::backend::{Descriptor, Handle, Value, check};

/// Alignment of all operands, in bytes.
pub(super) const ALIGNMENT: usize = 16;

/// The unique id of a tensor in memory, and its address. For a number it is an address of the host.
pub(super) type Operand = (i64, u64);

/// The device to plan for.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Of(&'a Handle),
    /// A description of device properties.
    #[cfg_attr(not(test), expect(dead_code, reason = "a step has a device"))]
    Described(&'a Descriptor),
}

/// An execution plan of a graph.
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
    /// The operands must be those of the graph, with addresses of memory of their sizes and types, and the workspace
    /// must have [`bytes`](Self::bytes) bytes. They must stay valid until the device has run the plan, and numbers
    /// until this returns.
    pub(super) unsafe fn run(&self, handle: &Handle, operands: &[Operand], workspace: u64) -> Result<()> {
        let operands = variant_pack(operands, workspace)?;
        // SAFETY: handle, plan and operands are valid, finalized descriptors, and the caller guarantees the addresses.
        check(unsafe { cudnnBackendExecute(handle.handle, self.descriptor.0, operands.0) })
    }
}

pub(super) fn variant_pack(operands: &[Operand], workspace: u64) -> Result<Descriptor> {
    let (names, addresses): (Vec<i64>, Vec<u64>) = operands.iter().copied().unzip();
    let attributes = [
        (Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Value::Integers(&names)),
        (Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, Value::Addresses(&addresses)),
        (Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, Value::Addresses(&[workspace])),
    ];
    Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &attributes)
}

/// What an engine says about itself.
pub(super) struct Notes {
    numerical: Vec<u32>,
    behavior: Vec<u32>,
}

impl Notes {
    fn of(config: &Descriptor) -> Result<Option<Self>> {
        let engine = config.descriptors(Name::CUDNN_ATTR_ENGINECFG_ENGINE, Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        let Some(engine) = engine.first() else { return Ok(None) };
        let numerical = engine.notes(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, Type::CUDNN_TYPE_NUMERICAL_NOTE)?;
        let behavior = engine.notes(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, Type::CUDNN_TYPE_BEHAVIOR_NOTE)?;
        Ok(Some(Self { numerical, behavior }))
    }

    fn has(&self, note: Numerical) -> bool {
        self.numerical.contains(&(note as u32))
    }

    /// The same bits in every run, from the inputs themselves, added in f32.
    pub(super) fn is_exact(&self) -> bool {
        !self.has(Numerical::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
            && !self.has(Numerical::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION)
            && !self.has(Numerical::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)
    }

    pub(super) fn on_tensor_cores(&self) -> bool {
        self.has(Numerical::CUDNN_NUMERICAL_NOTE_TENSOR_CORE)
    }

    pub(super) fn is_compiled_at_run_time(&self) -> bool {
        self.behavior.contains(&(BehaviorNote::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as u32))
    }
}

/// cuDNN's plans whose notes are admitted, best first by its heuristic, and its errors.
pub(super) fn plans(
    graph: Descriptor,
    target: Target<'_>,
    admits: impl Fn(&Notes) -> bool,
) -> impl Iterator<Item = Result<Plan>> {
    let guessed = move |mode| match heuristic_configs(&graph, mode, target) {
        Ok(configs) => configs.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    };
    let plan = move |config: Result<Descriptor>| -> Result<Option<Plan>> {
        let config = config?;
        let admitted = Notes::of(&config)?.is_some_and(|notes| admits(&notes));
        if admitted { Plan::new(config, target).map(Some) } else { Ok(None) }
    };
    let modes = [Heuristic::CUDNN_HEUR_MODE_A, Heuristic::CUDNN_HEUR_MODE_FALLBACK].into_iter();
    modes.flat_map(guessed).map(plan).filter_map(Result::transpose)
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

/// The graph of these operations.
pub(super) fn operation_graph(operations: &[Descriptor], target: Target<'_>) -> Result<Descriptor> {
    let mut attributes = vec![(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, Value::Descriptors(operations))];
    if let Target::Of(handle) = target {
        attributes.push((Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Value::Handle(handle)));
    }
    Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, &attributes)
}

pub(super) fn data_type(dtype: DType) -> Result<cudnnDataType_t> {
    match dtype {
        DType::F32 => Ok(cudnnDataType_t::CUDNN_DATA_FLOAT),
        DType::F64 => Ok(cudnnDataType_t::CUDNN_DATA_DOUBLE),
        DType::F16 => Ok(cudnnDataType_t::CUDNN_DATA_HALF),
        DType::BF16 => Ok(cudnnDataType_t::CUDNN_DATA_BFLOAT16),
        dtype => candle_core::bail!("expected a tensor of f32, f64, f16 or bf16, found {dtype:?}"),
    }
}

/// The properties of an H200, in cuDNN's JSON format.
#[cfg(test)]
pub(super) fn h200() -> Descriptor {
    let properties = r#"{"deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "deviceName": "NVIDIA H200",
        "totalGlobalMem": 150754820096, "multiProcessorCount": 132, "warpSize": 32, "maxThreadsPerBlock": 1024,
        "maxThreadsPerSM": 2048, "maxCtasPerSM": 32, "maxGridSize": [2147483647, 65535, 65535],
        "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
        "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
        "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000,
        "memClockRateKHz": 3201000, "l2CacheSize": 62914560}"#;
    let properties = [(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, Value::Text(properties))];
    Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &properties).unwrap()
}
