//! What the compiler says of a wrong `#[sam]`, and what it takes. `TRYBUILD=overwrite` writes the `.stderr` files anew.

use trybuild::TestCases;

/// Each error stands under the token that is to blame for it, says what to write instead, and comes alone.
#[test]
fn refused() {
    TestCases::new().compile_fail("tests/ui/fail/*.rs");
}

/// Each file runs, and checks what came out.
#[test]
fn accepted() {
    TestCases::new().pass("tests/ui/pass/*.rs");
}
