//! Images of another size: the nearest pixel, or a mean of four. Threads share out the planes.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::float::{Float, for_float, like, output, view, zeros};
use crate::kernels::shapes::{Between, Resize, ResizeMode, UpsampleShape};

/// A side's elements, with weights in the type of the images.
struct Side<T> {
    between: Vec<(Between, [T; 2])>,
}

impl<T: Float> Side<T> {
    fn new(side: &Resize) -> Self {
        let of = |i| {
            let between = side.between(i);
            (between, [T::narrow(1.0 - between.weight), T::narrow(between.weight)])
        };
        Self { between: (0..side.output).map(of).collect() }
    }
}

/// The images of x, whose last two dimensions are interpolated. Those of `shape` are the result's.
pub(crate) fn upsample(sizes: &UpsampleShape, x: &Tensor, shape: Shape) -> Result<(CpuStorage, Shape)> {
    let (dtype, x) = (x.dtype(), view(x));
    let UpsampleShape { rows, columns, .. } = *sizes;
    for_float!(dtype, "upsample", |T| {
        let (down, right) = (Side::<T>::new(&rows), Side::<T>::new(&columns));
        let mut y = zeros::<T>(shape.elem_count());
        let planes = x.elements::<T>()?.par_chunks(rows.input * columns.input);
        y.par_chunks_mut((rows.output * columns.output).max(1)).zip(planes).for_each(|(y, x)| {
            let lines = y.chunks_exact_mut(columns.output).zip(&down.between);
            if rows.mode == ResizeMode::Nearest {
                for (y, (Between { low, .. }, _)) in lines {
                    let line = &x[low * columns.input..][..columns.input];
                    y.iter_mut().zip(&right.between).for_each(|(y, (between, _))| *y = line[between.low]);
                }
                return;
            }
            T::with_scratch(|line| {
                line.resize(columns.input, T::default());
                for (y, (Between { low, high, .. }, [first, second])) in lines {
                    let [low, high] = [low, high].map(|row| &x[row * columns.input..][..columns.input]);
                    for (line, (low, high)) in line.iter_mut().zip(low.iter().zip(high)) {
                        *line = *first * *low + *second * *high;
                    }
                    for (y, (between, [first, second])) in y.iter_mut().zip(&right.between) {
                        *y = *first * line[between.low] + *second * line[between.high];
                    }
                }
            });
        });
        Ok(output(y, shape))
    })
}

/// The gradient of x.
pub(crate) fn upsample_back(sizes: &UpsampleShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let dy = view(dy);
    let UpsampleShape { rows, columns, .. } = *sizes;
    for_float!(x.dtype(), "upsample", |T| {
        let (down, right) = (Side::<T>::new(&rows), Side::<T>::new(&columns));
        let mut dx = zeros::<T>(x.elem_count());
        let planes = dy.elements::<T>()?.par_chunks((rows.output * columns.output).max(1));
        dx.par_chunks_mut(rows.input * columns.input).zip(planes).for_each(|(dx, dy)| {
            let lines = dy.chunks_exact(columns.output).zip(&down.between);
            if rows.mode == ResizeMode::Nearest {
                for (dy, (Between { low, .. }, _)) in lines {
                    let line = &mut dx[low * columns.input..][..columns.input];
                    dy.iter().zip(&right.between).for_each(|(dy, (between, _))| line[between.low] += *dy);
                }
                return;
            }
            T::with_scratch(|line| {
                for (dy, (Between { low, high, .. }, weights)) in lines {
                    line.clear();
                    line.resize(columns.input, T::default());
                    for (dy, (between, [first, second])) in dy.iter().zip(&right.between) {
                        line[between.low] += *first * *dy;
                        line[between.high] += *second * *dy;
                    }
                    for (row, weight) in [low, high].into_iter().zip(weights) {
                        let dx = &mut dx[row * columns.input..][..columns.input];
                        dx.iter_mut().zip(&*line).for_each(|(dx, line)| *dx += *weight * *line);
                    }
                }
            });
        });
        like(dx, x)
    })
}
