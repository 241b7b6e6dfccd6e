//! Attribute macros that change nothing, to stand above and below `#[sam]`.

use proc_macro::TokenStream;

/// Hands on the item.
#[proc_macro_attribute]
pub fn as_it_is(_: TokenStream, item: TokenStream) -> TokenStream {
    item
}

/// Hands on the item as it is written, so that all tokens have the hygiene of the place where the attribute stands.
///
/// # Panics
///
/// If the text of an item is not an item.
#[proc_macro_attribute]
pub fn as_text(_: TokenStream, item: TokenStream) -> TokenStream {
    item.to_string().parse().expect("the text of an item is an item")
}
