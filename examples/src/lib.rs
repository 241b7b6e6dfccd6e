//! The trainers and what they are made of.
//!
//! Start with [`tutorial`]: a training loop, and the one line that turns it into a SAM loop. The rest is what any
//! trainer needs: [`data`], [`augment`], [`batches`], [`models`] built from a [`kit`] of layers, the [`run`] that repeats the loop for every seed and method, and the
//! [`report`] on it.

pub mod augment;
pub mod batches;
pub mod compute;
pub mod console;
pub mod data;
pub mod kit;
pub mod loss;
pub mod method;
pub mod models;
mod numbers;
pub mod paper;
pub mod recipe;
pub mod report;
pub mod run;
pub mod trainer;
pub mod tutorial;
