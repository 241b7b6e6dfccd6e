//! The stages of the attribute in their order.

use proc_macro2::TokenStream;

use crate::{args::Args, expand, plain, validate};

/// Parse, validate, expand. What is refused is emitted as written, so that an editor still knows it.
pub(crate) fn rewrite(args: TokenStream, item: TokenStream) -> TokenStream {
    match validate::validate(Args::parse(args), syn::parse2(item.clone())) {
        Ok(loss) => expand::expand(&loss),
        Err(errors) => {
            let item = syn::parse2(item.clone()).map_or(item, |function| plain::as_written(&function));
            [item, errors.into_compile_error()].into_iter().collect()
        }
    }
}
