//! cuDNN's handles and backend descriptors, each owned by a Rust type.

use std::ffi::c_void;
use std::ptr::{from_mut, from_ref, null_mut};
use std::sync::Arc;

use candle_core::cuda::cudarc::cudnn::result;
use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type, cudnnBackendCreateDescriptor,
    cudnnBackendDescriptor_t, cudnnBackendDescriptorType_t as Kind, cudnnBackendDestroyDescriptor,
    cudnnBackendFinalize, cudnnBackendGetAttribute, cudnnBackendHeurMode_t as Heuristic, cudnnBackendSetAttribute,
    cudnnConvolutionMode_t, cudnnDataType_t, cudnnHandle_t, cudnnPointwiseMode_t, cudnnReduceTensorOp_t, cudnnStatus_t,
};
use candle_core::cuda::cudarc::driver::CudaStream;
use candle_core::{Error, Result};

/// A cuDNN handle with its stream, for one thread.
pub(super) struct Handle {
    pub(super) handle: cudnnHandle_t,
    stream: Arc<CudaStream>,
}

impl Handle {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        let handle = Self { handle: result::create_handle()?, stream: Arc::clone(stream) };
        // SAFETY: the handle and the stream are valid, and `Self` keeps the stream as long as the handle.
        unsafe { result::set_stream(handle.handle, stream.cu_stream().cast())? };
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // At process exit the driver or cuDNN may be unloaded already; errors are ignored.
        let _ = self.stream.context().bind_to_thread();
        // SAFETY: `Self` owns the handle, and nothing uses it after this.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Sizes in cuDNN's integer type.
pub(super) fn integers<const N: usize>(sizes: [usize; N]) -> Result<[i64; N]> {
    let mut integers = [0; N];
    for (to, size) in integers.iter_mut().zip(sizes) {
        *to = integer(size)?;
    }
    Ok(integers)
}

pub(super) fn integer(size: usize) -> Result<i64> {
    i64::try_from(size).map_err(Error::wrap)
}

pub(super) fn check(status: cudnnStatus_t) -> Result<()> {
    Ok(status.result()?)
}

/// An owned backend descriptor.
#[repr(transparent)]
pub(super) struct Descriptor(pub(super) cudnnBackendDescriptor_t);

/// An attribute's value.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Integers(&'a [i64]),
    F32(f32),
    F64(f64),
    Bool(bool),
    Type(cudnnDataType_t),
    Mode(cudnnConvolutionMode_t),
    Pointwise(cudnnPointwiseMode_t),
    Reduction(cudnnReduceTensorOp_t),
    Heuristic(Heuristic),
    Addresses(&'a [u64]),
    Descriptor(&'a Descriptor),
    Descriptors(&'a [Descriptor]),
    Handle(&'a Handle),
    #[cfg(test)]
    Text(&'a str),
}

impl Descriptor {
    /// Creates a descriptor, sets these attributes, and finalizes it.
    pub(super) fn new(kind: Kind, attributes: &[(Name, Value<'_>)]) -> Result<Self> {
        let descriptor = Self::empty(kind)?;
        for (name, value) in attributes {
            descriptor.set(*name, value)?;
        }
        // SAFETY: the descriptor was created above and is finalized once, after its attributes are set.
        check(unsafe { cudnnBackendFinalize(descriptor.0) })?;
        Ok(descriptor)
    }

    fn empty(kind: Kind) -> Result<Self> {
        let mut descriptor = Self(null_mut());
        // SAFETY: the pointer is that of a local variable, to which cuDNN writes the new descriptor.
        check(unsafe { cudnnBackendCreateDescriptor(kind, from_mut(&mut descriptor.0)) })?;
        Ok(descriptor)
    }

    fn set(&self, name: Name, value: &Value<'_>) -> Result<()> {
        fn one<T>(value: &T) -> (usize, *const c_void) {
            (1, from_ref(value).cast())
        }
        let (kind, (count, at)) = match value {
            Value::Integers(x) => (Type::CUDNN_TYPE_INT64, (x.len(), x.as_ptr().cast())),
            Value::F32(x) => (Type::CUDNN_TYPE_FLOAT, one(x)),
            Value::F64(x) => (Type::CUDNN_TYPE_DOUBLE, one(x)),
            Value::Bool(x) => (Type::CUDNN_TYPE_BOOLEAN, one(x)),
            Value::Type(x) => (Type::CUDNN_TYPE_DATA_TYPE, one(x)),
            Value::Mode(x) => (Type::CUDNN_TYPE_CONVOLUTION_MODE, one(x)),
            Value::Pointwise(x) => (Type::CUDNN_TYPE_POINTWISE_MODE, one(x)),
            Value::Reduction(x) => (Type::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, one(x)),
            Value::Heuristic(x) => (Type::CUDNN_TYPE_HEUR_MODE, one(x)),
            Value::Addresses(x) => (Type::CUDNN_TYPE_VOID_PTR, (x.len(), x.as_ptr().cast())),
            Value::Descriptor(x) => (Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, one(&x.0)),
            Value::Descriptors(x) => (Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, (x.len(), x.as_ptr().cast())),
            Value::Handle(x) => (Type::CUDNN_TYPE_HANDLE, one(&x.handle)),
            #[cfg(test)]
            Value::Text(x) => (Type::CUDNN_TYPE_CHAR, (x.len(), x.as_ptr().cast())),
        };
        // SAFETY: `at` points to `count` values of the attribute's type (addresses have the size of pointers, and
        // `Descriptor` is transparent). cuDNN copies them during the call.
        check(unsafe { cudnnBackendSetAttribute(self.0, name, kind, integer(count)?, at) })
    }

    pub(super) fn integer(&self, name: Name) -> Result<i64> {
        let mut integer = 0;
        // SAFETY: there is room for one integer.
        unsafe { self.get(name, Type::CUDNN_TYPE_INT64, 1, from_mut(&mut integer).cast()) }?;
        Ok(integer)
    }

    /// As numbers: a newer library may have notes that these bindings do not know.
    pub(super) fn notes(&self, name: Name, kind: Type) -> Result<Vec<u32>> {
        let mut notes = vec![0; 64];
        // SAFETY: there is room for `notes.len()` values, which are C enums of 32 bits.
        let count = unsafe { self.get(name, kind, notes.len(), notes.as_mut_ptr().cast()) }?;
        notes.truncate(count);
        Ok(notes)
    }

    pub(super) fn descriptors(&self, name: Name, kind: Kind) -> Result<Vec<Self>> {
        // SAFETY: with room for 0 values cuDNN only returns their number.
        let count = unsafe { self.get(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, null_mut()) }?;
        let mut descriptors = (0..count).map(|_| Self::empty(kind)).collect::<Result<Vec<_>>>()?;
        let at = descriptors.as_mut_ptr().cast();
        // SAFETY: `at` points to `count` valid descriptors of this kind, which cuDNN fills. `Descriptor` is
        // transparent.
        let count = unsafe { self.get(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, count, at) }?;
        descriptors.truncate(count);
        Ok(descriptors)
    }

    /// Reads an attribute, and returns the number of its values.
    ///
    /// # Safety
    ///
    /// `at` must have room for `most` values of this type.
    unsafe fn get(&self, name: Name, kind: Type, most: usize, at: *mut c_void) -> Result<usize> {
        let mut count = 0;
        // SAFETY: `self.0` is a valid descriptor, and the caller guarantees the room.
        check(unsafe { cudnnBackendGetAttribute(self.0, name, kind, integer(most)?, from_mut(&mut count), at) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: `Self` owns the descriptor, and nothing uses it after this.
        unsafe { cudnnBackendDestroyDescriptor(self.0) };
    }
}
