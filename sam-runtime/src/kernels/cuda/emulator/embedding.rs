//! The gradient of an embedding, against sums in f64.

use candle_core::DType;

use super::super::launch::dtype_code;
use super::super::launch::embedding::Table;
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, tolerance};

#[test]
fn gradients_of_tables() {
    for dtype in FLOATS {
        for [rows, columns, tokens] in [[7, 5, 1], [3, 300, 40], [50, 9, 700], [1, 1, 300]] {
            // Ids beyond the table, and negative ones, add nothing.
            let ids: Vec<f64> = (0..tokens).map(|i| (i * i * 31 % (rows + 2)) as f64 - 1.0).collect();
            let (at, dy) = (Buffer::new(DType::I64, &ids), Buffer::new(dtype, &numbers(tokens * columns, 1)));
            let table = Table { dtype: dtype_code(dtype).unwrap(), rows, columns, tokens };
            let Some(found) = in_both_orders(|launcher| {
                let dx = Buffer::new(dtype, &vec![0.0; rows * columns]);
                table.backward(launcher, [at.address(), dy.address(), dx.address()])?;
                Ok(vec![dx])
            }) else {
                return;
            };
            let mut expected = vec![0.0; rows * columns];
            for (id, dy) in ids.iter().zip(dy.values().chunks(columns)) {
                if let Some(row) = (0..rows).find(|row| *row as f64 == *id) {
                    let row = &mut expected[row * columns..][..columns];
                    row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
                }
            }
            assert_close(&found[0], &expected, tolerance(dtype), &format!("{table:?}"));
        }
    }
}
