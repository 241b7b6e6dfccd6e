//! What the derives expand to, and what they refuse.

use expect_test::{ExpectFile, expect_file};
use proc_macro2::TokenStream;

use crate::derive;

fn check_derive(derive: fn(TokenStream) -> syn::Result<TokenStream>, source: &str, expected: &ExpectFile) {
    let item = source.parse().expect("tokens");
    let output = syn::parse2(derive(item).expect("no error")).expect("items");
    let input: String = source.trim().lines().map(|line| format!("//     {line}\n").replace("     \n", "\n")).collect();
    expected.assert_eq(&format!("// Input\n//\n{input}//\n// Output\n\n{}", prettyplease::unparse(&output)));
}

#[test]
fn derive_aux() {
    let source = "
struct Metrics<'a, T: Clone, const N: usize>
where
    T: 'a,
{
    name: &'a str,
    r#type: [T; N],
}";
    check_derive(derive::aux, source, &expect_file!["../../tests/snapshots/derive_aux.rs"]);
}

#[test]
fn derive_aux_for_an_enum() {
    let source = "
#[aux(crate = crate::runtime)]
enum Phase {
    Warm,
    Hot(f64, Tensor),
    Done { at: Instant },
}";
    check_derive(derive::aux, source, &expect_file!["../../tests/snapshots/derive_aux_for_an_enum.rs"]);
}

#[test]
fn derive_loss_output() {
    let source = "
pub struct Step<A> {
    logits: Tensor,
    loss: Tensor,
    more: A,
}";
    check_derive(derive::loss_output, source, &expect_file!["../../tests/snapshots/derive_loss_output.rs"]);
}

/// Such a field has no value, but its tokens are valid Rust.
#[test]
fn derive_for_a_trait_object() {
    let output = derive::aux("enum E<T> { A(dyn T + Send), B { b: T+ } }".parse().expect("tokens")).expect("no error");
    assert!(syn::parse2::<syn::File>(output).is_ok());
}

#[test]
fn what_cannot_be_derived() {
    let message = |derive: fn(TokenStream) -> syn::Result<TokenStream>, source: &str| {
        derive(source.parse().expect("tokens")).expect_err("an error").to_string()
    };
    let aux = "`Aux` can be derived only for structs and enums: implement it by hand";
    let output =
        "`LossOutput` can be derived only for structs: a loss function returns a `Tensor`, a tuple or a struct";
    let loss = "`LossOutput` needs the loss: add a field `loss: Tensor`";
    let option = "expected `#[aux(crate = ::path)]`";
    assert_eq!(message(derive::aux, "union U { a: f32, b: u32 }"), aux);
    assert_eq!(message(derive::aux, "#[aux(join)] struct A(f64);"), option);
    assert_eq!(message(derive::loss_output, "enum E { A(Tensor) }"), output);
    assert_eq!(message(derive::loss_output, "union U { loss: f32 }"), output);
    assert_eq!(message(derive::loss_output, "struct S { value: Tensor }"), loss);
    assert_eq!(message(derive::loss_output, "struct S;"), loss);
    assert_eq!(message(derive::loss_output, "struct S();"), loss);
}
