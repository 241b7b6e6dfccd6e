//! What the compiler says of a wrong `#[sam]`, and what it takes.
//!
//! The refusals are trybuild's: `TRYBUILD=overwrite` writes the `.stderr` files anew. What is accepted is compiled with
//! this file, and runs: as crates of trybuild's they would cost seven minutes, and clippy would not see them. The crates
//! in `tests/editions` compile the same files in every edition.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fs;

use trybuild::TestCases;

/// Each error stands under what is to blame for it, says what to write instead, and comes alone.
#[test]
fn refused() {
    TestCases::new().compile_fail("tests/ui/fail/*.rs");
}

#[allow(missing_docs, reason = "`strict_lints` has its own")]
pub mod ui {
    pub mod pass {
        pub mod arguments_by_mut;
        pub mod arguments_by_value;
        pub mod auxiliary_values;
        pub mod blanket_traits;
        pub mod buffers;
        pub mod control_flow;
        pub mod error_of_anyhow;
        pub mod error_of_ones_own;
        pub mod every_key;
        pub mod function;
        pub mod generics;
        pub mod impl_trait_argument;
        pub mod inside_macro_rules;
        pub mod methods;
        pub mod names_of_constants;
        pub mod names_that_shadow;
        pub mod nested;
        pub mod no_implicit_prelude;
        pub mod opaque_errors;
        pub mod other_attributes;
        pub mod patterns;
        pub mod raw_identifiers;
        pub mod reductions;
        pub mod runtime_exported_again;
        pub mod several_ranks;
        pub mod strict_lints;
        pub mod temporaries;
        pub mod trait_default_method;
        pub mod trait_implementation;
        pub mod unsafe_function;
        pub mod variants;
        pub mod visibility_and_cfg;
        pub mod what_outlives_a_pass;
    }
}

#[test]
fn in_edition_2018() {
    sam_tests_2018::all();
}

#[test]
fn in_edition_2021() {
    sam_tests_2021::all();
}

#[test]
fn in_edition_2024() {
    sam_tests_2024::all();
}

/// A crate that knows the runtime and candle by other names.
#[test]
fn renamed_dependencies() {
    assert_eq!(sam_tests_renamed::gradients(), [6.6, 8.8, 6.6, 8.8]);
}

#[test]
fn no_file_is_left_out() {
    for file in fs::read_dir("tests/ui/pass").unwrap() {
        let name = file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(include_str!("ui.rs").contains(&format!("mod {name};")), "{name}");
        assert!(include_str!("../editions/all.rs").contains(&format!("    {name}\n")), "{name}");
    }
}
