//! An operation of one to three inputs in candle's graph, whose output does not depend on the values of the inputs.
//!
//! candle's custom operations are a trait for each number of inputs; here they are one.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Tensor,
};

pub(super) trait JoinOp: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)>;

    /// `like`: the first input.
    fn on_cuda(&self, like: &CudaStorage) -> Result<(CudaStorage, Shape)>;

    fn on_metal(&self, _: &MetalStorage) -> Result<(MetalStorage, Shape)> {
        candle_core::bail!("there is no {} on Metal", self.name())
    }

    /// The gradients of the inputs, given that of the output.
    fn backward(&self, inputs: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// The output, which depends on the inputs.
pub(super) fn join(op: impl JoinOp, inputs: &[&Tensor]) -> Result<Tensor> {
    let op = Join(op);
    match inputs {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => candle_core::bail!("expected one to three inputs, found {}", inputs.len()),
    }
}

struct Join<T>(T);

impl<T: JoinOp> Join<T> {
    fn backward<const N: usize>(&self, inputs: [&Tensor; N], gradient: &Tensor) -> Result<[Option<Tensor>; N]> {
        let mut gradients = self.0.backward(&inputs, gradient)?.into_iter();
        Ok([(); N].map(|()| gradients.next().flatten()))
    }
}

impl<T: JoinOp> CustomOp1 for Join<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu()
    }

    fn cuda_fwd(&self, a: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.on_cuda(a)
    }

    fn metal_fwd(&self, a: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.0.on_metal(a)
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.backward([a], gradient).map(|[a]| a)
    }
}

impl<T: JoinOp> CustomOp2 for Join<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu()
    }

    fn cuda_fwd(&self, a: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.on_cuda(a)
    }

    fn metal_fwd(&self, a: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.0.on_metal(a)
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward([a, b], gradient).map(Into::into)
    }
}

impl<T: JoinOp> CustomOp3 for Join<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu()
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.on_cuda(a)
    }

    fn metal_fwd(
        &self,
        a: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.0.on_metal(a)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.backward([a, b, c], gradient).map(Into::into)
    }
}
