//! Every variant against a few lines that were written from its formula, and what all of them promise.

#![allow(clippy::unwrap_used, clippy::cast_sign_loss, reason = "this is test code")]

mod costs;
mod distributed;
mod formulas;
mod identities;
mod participation;
mod promises;
#[path = "../distributed/ranks.rs"]
mod ranks;
mod reference;
mod resume;
mod rounding;
mod scaling;
mod second_order;
mod weighted;
