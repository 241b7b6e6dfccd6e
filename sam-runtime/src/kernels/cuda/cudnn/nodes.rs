//! A graph of several operations under construction.

use candle_core::Result;
use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnDataType_t,
    cudnnPointwiseMode_t as Pointwise, cudnnReduceTensorOp_t as Reduction,
};

use super::backend::{Descriptor, Value, integer};
use super::plan::{ALIGNMENT, Target, operation_graph};

/// Of four dimensions.
pub(super) type Sizes = [i64; 4];

/// A tensor of the graph.
pub(super) struct Node {
    tensor: Descriptor,
    dtype: cudnnDataType_t,
    pub(super) sizes: Sizes,
    strides: Sizes,
}

/// Unique ids from here on are those of tensors that no memory holds.
const BETWEEN: i64 = 1000;

#[derive(Default)]
pub(super) struct Nodes {
    operations: Vec<Descriptor>,
    made: i64,
}

impl Nodes {
    /// A tensor from one operation to others, which no memory holds.
    pub(super) fn between(&mut self, dtype: cudnnDataType_t, sizes: Sizes) -> Result<Node> {
        let [_, a, b, c] = sizes;
        self.between_with_strides(dtype, sizes, [a * b * c, b * c, c, 1])
    }

    fn between_with_strides(&mut self, dtype: cudnnDataType_t, sizes: Sizes, strides: Sizes) -> Result<Node> {
        self.made += 1;
        tensor(BETWEEN + self.made, dtype, sizes, strides, Some(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL))
    }

    /// The products of matrices, the last two dimensions, with sums in f32.
    pub(super) fn product(&mut self, a: &Node, b: &Node, to: Node) -> Result<Node> {
        let sums = (Name::CUDNN_ATTR_MATMUL_COMP_TYPE, Value::Type(cudnnDataType_t::CUDNN_DATA_FLOAT));
        let how = Descriptor::new(Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR, &[sums])?;
        let attributes = [
            (Name::CUDNN_ATTR_OPERATION_MATMUL_ADESC, Value::Descriptor(&a.tensor)),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_BDESC, Value::Descriptor(&b.tensor)),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_CDESC, Value::Descriptor(&to.tensor)),
            (Name::CUDNN_ATTR_OPERATION_MATMUL_DESC, Value::Descriptor(&how)),
        ];
        self.push(Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, &attributes)?;
        Ok(to)
    }

    /// A function of each element of up to three tensors, where a size of 1 stands for all.
    pub(super) fn elementwise(&mut self, mode: Pointwise, from: &[&Node], to: Node) -> Result<Node> {
        self.push_elementwise(&[(Name::CUDNN_ATTR_POINTWISE_MODE, Value::Pointwise(mode))], from, &to)?;
        Ok(to)
    }

    /// The index of each element of a tensor along an axis.
    pub(super) fn index(&mut self, of: &Node, axis: i64) -> Result<Node> {
        let to = self.between(cudnnDataType_t::CUDNN_DATA_INT32, of.sizes)?;
        let how = [
            (Name::CUDNN_ATTR_POINTWISE_MODE, Value::Pointwise(Pointwise::CUDNN_POINTWISE_GEN_INDEX)),
            (Name::CUDNN_ATTR_POINTWISE_AXIS, Value::Integers(&[axis])),
        ];
        self.push_elementwise(&how, &[of], &to)?;
        Ok(to)
    }

    /// Over the dimensions that have size 1 in the result, in f32.
    pub(super) fn reduction(&mut self, operator: Reduction, from: &Node, to: Node) -> Result<Node> {
        let attributes = [
            (Name::CUDNN_ATTR_REDUCTION_OPERATOR, Value::Reduction(operator)),
            (Name::CUDNN_ATTR_REDUCTION_COMP_TYPE, Value::Type(cudnnDataType_t::CUDNN_DATA_FLOAT)),
        ];
        let how = Descriptor::new(Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR, &attributes)?;
        let attributes = [
            (Name::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, Value::Descriptor(&from.tensor)),
            (Name::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, Value::Descriptor(&to.tensor)),
            (Name::CUDNN_ATTR_OPERATION_REDUCTION_DESC, Value::Descriptor(&how)),
        ];
        self.push(Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, &attributes)?;
        Ok(to)
    }

    /// The last two dimensions exchanged, in this dtype.
    pub(super) fn transposed(&mut self, from: &Node, dtype: cudnnDataType_t) -> Result<Node> {
        let to = self.between_with_strides(dtype, exchanged(from.sizes), exchanged(from.strides))?;
        let attributes = [
            (Name::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, Value::Descriptor(&from.tensor)),
            (Name::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, Value::Descriptor(&to.tensor)),
        ];
        self.push(Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, &attributes)?;
        Ok(to)
    }

    pub(super) fn graph(&self, target: Target<'_>) -> Result<Descriptor> {
        operation_graph(&self.operations, target)
    }

    fn push_elementwise(&mut self, how: &[(Name, Value<'_>)], from: &[&Node], to: &Node) -> Result<()> {
        // Floats in f32, whatever they are rounded to.
        let computed = match to.dtype {
            dtype @ (cudnnDataType_t::CUDNN_DATA_INT32 | cudnnDataType_t::CUDNN_DATA_BOOLEAN) => dtype,
            _ => cudnnDataType_t::CUDNN_DATA_FLOAT,
        };
        let computed = (Name::CUDNN_ATTR_POINTWISE_MATH_PREC, Value::Type(computed));
        let how = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR, &[how, &[computed]].concat())?;
        let names = [
            Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
            Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
            Name::CUDNN_ATTR_OPERATION_POINTWISE_TDESC,
        ];
        let mut attributes = vec![
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, Value::Descriptor(&how)),
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, Value::Descriptor(&to.tensor)),
        ];
        attributes.extend(names.into_iter().zip(from).map(|(name, from)| (name, Value::Descriptor(&from.tensor))));
        self.push(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, &attributes)
    }

    fn push(&mut self, kind: Kind, attributes: &[(Name, Value<'_>)]) -> Result<()> {
        self.operations.push(Descriptor::new(kind, attributes)?);
        Ok(())
    }
}

/// A tensor in memory.
pub(super) fn in_memory(name: i64, dtype: cudnnDataType_t, sizes: Sizes, strides: Sizes) -> Result<Node> {
    tensor(name, dtype, sizes, strides, None)
}

/// A number that is given with each run.
pub(super) fn number(name: i64, dtype: cudnnDataType_t) -> Result<Node> {
    tensor(name, dtype, [1; 4], [1; 4], Some(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE))
}

/// With the last two exchanged.
pub(super) fn exchanged([n, heads, rows, columns]: Sizes) -> Sizes {
    [n, heads, columns, rows]
}

/// A tensor in memory, unless it is what this attribute says.
fn tensor(name: i64, dtype: cudnnDataType_t, sizes: Sizes, strides: Sizes, kind: Option<Name>) -> Result<Node> {
    let alignment = [integer(ALIGNMENT)?];
    let mut attributes = vec![
        (Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, Value::Integers(std::slice::from_ref(&name))),
        (Name::CUDNN_ATTR_TENSOR_DATA_TYPE, Value::Type(dtype)),
        (Name::CUDNN_ATTR_TENSOR_DIMENSIONS, Value::Integers(&sizes)),
        (Name::CUDNN_ATTR_TENSOR_STRIDES, Value::Integers(&strides)),
        (Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, Value::Integers(&alignment)),
    ];
    attributes.extend(kind.map(|kind| (kind, Value::Bool(true))));
    Ok(Node { tensor: Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR, &attributes)?, dtype, sizes, strides })
}
