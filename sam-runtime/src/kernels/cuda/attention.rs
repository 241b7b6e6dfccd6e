//! Attention on tensors.

use candle_core::{DType, Result, Tensor};

use super::buffers::{Output, UninitTensor, address_of, device, strided_address};
use super::context::with_context;
#[cfg(feature = "cudnn")]
use super::cudnn;
use super::launch::attention::{Attention, Given, Mask, Rows};
use super::launch::dtype_code;
use crate::core::dtype::wide;
use crate::kernels::shapes::{AttentionShape, HeadStrides, mask_strides};

/// (batch, queries, heads `v_dim`), and the logarithm of each row's sum.
pub(crate) fn attention(shape: &AttentionShape, args: &[Tensor]) -> Result<(Output, Tensor)> {
    let AttentionShape { batch, heads, queries, v_dim, .. } = *shape;
    let (device, dtype) = (device(&args[0])?, args[0].dtype());
    let y = UninitTensor::new(device, dtype, (batch, queries, heads * v_dim))?;
    let logs = UninitTensor::new(device, wide(dtype), (batch, heads, queries))?;
    if batch * heads * queries * v_dim > 0 {
        let (launch, addresses) = (attention_of(shape, args)?, (y.address()?, logs.address()?));
        let to = (addresses.0, shape.output());
        with_context(device, |context| {
            #[cfg(feature = "cudnn")]
            if cudnn::attention::forward(context, dtype, &launch, to, addresses.1)? {
                return Ok(());
            }
            launch.forward(context, to, addresses.1)
        })?;
    }
    Ok((y.output(), logs.tensor()?))
}

/// The wanted gradients of the arguments.
pub(crate) fn attention_back(
    shape: &AttentionShape,
    args: &[Tensor],
    wanted: &[bool],
    y: &Tensor,
    dy: &Tensor,
    logs: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let AttentionShape { batch, heads, queries, keys, v_dim, .. } = *shape;
    if batch * heads * queries * keys * v_dim == 0 {
        return args.iter().zip(wanted).map(|(arg, wanted)| wanted.then(|| arg.zeros_like()).transpose()).collect();
    }
    let launch = attention_of(shape, args)?;
    let deltas = UninitTensor::new(device(y)?, logs.dtype(), logs.shape())?;
    let rows_of_dy: Rows = (address_of(dy)?, shape.output());
    let given = Given { dy: rows_of_dy, logs: address_of(logs)?, deltas: deltas.address()? };
    let (of_inputs, of_masks) = wanted.split_at(shape.inputs());
    let fresh = |(arg, wanted): (&Tensor, &bool)| {
        wanted.then(|| UninitTensor::new(device(arg)?, arg.dtype(), arg.shape())).transpose()
    };
    let inputs = args.iter().zip(of_inputs).map(fresh).collect::<Result<Vec<_>>>()?;
    let dims: Vec<&[usize]> = args[..shape.inputs()].iter().map(Tensor::dims).collect();
    let strides: [HeadStrides; 3] = shape.gradient_strides(&dims);
    let to = |i: usize| {
        let buffer = inputs[if shape.packed { 0 } else { i }].as_ref();
        buffer.map(|buffer| Ok::<Rows, candle_core::Error>((buffer.address()?, strides[i]))).transpose()
    };
    let [dq, dk, dv] = [to(0)?, to(1)?, to(2)?];
    let mask = match (args.get(shape.inputs()), of_masks) {
        (Some(mask), [true]) => fresh((mask, &true))?,
        _ => None,
    };
    let to_mask = mask.as_ref().map(|mask| Ok::<_, candle_core::Error>((mask.address()?, mask.shape.elem_count())));
    let (to_mask, from) = (to_mask.transpose()?, address_of(y)?);
    with_context(device(y)?, |context| {
        #[cfg(feature = "cudnn")]
        if let (Some(dq), Some(dk), Some(dv)) = (dq, dk, dv)
            && cudnn::attention::backward(context, y.dtype(), &launch, from, &given, [dq, dk, dv])?
        {
            return Ok(());
        }
        launch.deltas(context, from, given.dy, given.deltas)?;
        if let Some(dq) = dq {
            launch.backward_of_queries(context, &given, dq)?;
        }
        if dk.is_some() || dv.is_some() {
            launch.backward_of_keys(context, &given, [dk, dv])?;
        }
        match to_mask {
            Some((address, n)) => launch.backward_of_mask(context, &given, address, n),
            None => Ok(()),
        }
    })?;
    let gradients = inputs.into_iter().chain(args.get(shape.inputs()).map(|_| mask));
    gradients.map(|gradient| gradient.map(UninitTensor::tensor).transpose()).collect()
}

fn attention_of<'a>(shape: &'a AttentionShape, args: &[Tensor]) -> Result<Attention<'a>> {
    let inputs = &args[..shape.inputs()];
    let layouts: Vec<_> = inputs.iter().map(|arg| (arg.dims(), arg.stride())).collect();
    let strides = shape.strides(&layouts);
    let rows = |i: usize| {
        Ok::<Rows, candle_core::Error>((strided_address(&inputs[if shape.packed { 0 } else { i }])?, strides[i]))
    };
    let mask = match args.get(shape.inputs()) {
        None => None,
        Some(mask) => {
            let dtype = if mask.dtype() == DType::U8 { None } else { Some(dtype_code(mask.dtype())?) };
            Some(Mask { address: address_of(mask)?, dtype, strides: mask_strides(mask.dims4()?) })
        }
    };
    let dtype = dtype_code(args[0].dtype())?;
    Ok(Attention { shape, dtype, q: rows(0)?, k: rows(1)?, v: rows(2)?, mask })
}
