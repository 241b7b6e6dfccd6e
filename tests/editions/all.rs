//! All that the attribute accepts, `tests/ui/pass`, in the edition of the crate that this file is the root of.

#![deny(warnings)]
#![allow(non_fmt_panics, reason = "before edition 2021 a message without arguments is no format string")]

/// Names the files, and calls what each of them has to show.
macro_rules! files {
    ($($name:ident)*) => {
        #[path = "../tests/ui"]
        pub mod ui {
            pub mod pass {
                $(pub mod $name;)*
            }
        }

        /// Panics unless each loss of each file has the gradient that it should have.
        pub fn all() {
            $(ui::pass::$name::main().unwrap();)*
        }
    };
}

files! {
    arguments_by_mut
    arguments_by_value
    auxiliary_values
    blanket_traits
    buffers
    control_flow
    error_of_anyhow
    error_of_ones_own
    every_key
    function
    generics
    impl_trait_argument
    inside_macro_rules
    methods
    names_of_constants
    names_that_shadow
    nested
    no_implicit_prelude
    opaque_errors
    other_attributes
    patterns
    raw_identifiers
    reductions
    runtime_exported_again
    several_ranks
    strict_lints
    temporaries
    trait_default_method
    trait_implementation
    unsafe_function
    variants
    visibility_and_cfg
    what_outlives_a_pass
}
