//! The function without SAM: the one that `plain` names, and the one that is refused.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::{
    Attribute, Meta, MetaList, PatIdent, PatType, Safety, Signature, Token,
    punctuated::Punctuated,
    visit_mut::{self, VisitMut},
};

use crate::function::{Binding, Item};

/// The function that is refused. What the attribute alone would use is not at fault, and is not reported as unused.
pub(crate) fn as_written(item: &Item) -> TokenStream {
    let Item { attrs, vis, sig, body } = item;
    let mut signature = sig.clone();
    Quiet(&item.bindings()).visit_signature_mut(&mut signature);
    quote!(#(#attrs)* #vis #signature #body)
}

pub(crate) fn plain(item: &Item, name: &Ident) -> TokenStream {
    let Item { attrs, vis, sig, body } = item;
    let original = &sig.ident;
    let mut docs = vec![format!(" `{original}` without SAM: the function as it was written.")];
    // What clippy wants to read of a public function.
    let safety = matches!(sig.safety, Safety::Unsafe(_)).then_some("Safety");
    for section in ["Errors", "Panics"].into_iter().chain(safety) {
        docs.extend([String::new(), format!(" # {section}"), String::new(), format!(" As `{original}`.")]);
    }
    let attrs = attrs.iter().filter_map(|attr| Some(Attribute { meta: without_docs(&attr.meta)?, ..attr.clone() }));
    // Written by the user, as far as clippy can see: what an attribute writes does not count as documentation for it.
    let docs = quote_spanned!(name.span()=> #(#[doc = #docs])*);
    // An error that has to do with the whole function begins at its name.
    let mut signature = Signature { ident: name.clone(), fn_token: Token![fn](name.span()), ..sig.clone() };
    Quiet(&item.bindings()).visit_signature_mut(&mut signature);
    quote_spanned! {Span::mixed_site()=>
        #docs
        #(#attrs)*
        #vis #signature #body
    }
}

/// Marks the names that the body does not use as written by a macro, of which the compiler does not report that they are
/// unused.
struct Quiet<'a>(&'a [Binding]);

impl VisitMut for Quiet<'_> {
    /// One that is expected to be unused has to be reported.
    fn visit_pat_type_mut(&mut self, arg: &mut PatType) {
        let expects =
            |attr: &Attribute| attr.path().is_ident("expect") && attr.to_token_stream().to_string().contains("unused");
        if !arg.attrs.iter().any(expects) {
            visit_mut::visit_pat_type_mut(self, arg);
        }
    }

    fn visit_pat_ident_mut(&mut self, pat: &mut PatIdent) {
        if self.0.iter().any(|binding| binding.name == pat.ident && !binding.is_used()) {
            pat.ident.set_span(pat.ident.span().resolved_at(Span::mixed_site()));
        }
        visit_mut::visit_pat_ident_mut(self, pat);
    }
}

/// Also without those that `cfg_attr` hides.
fn without_docs(meta: &Meta) -> Option<Meta> {
    match meta {
        Meta::NameValue(text) if text.path.is_ident("doc") => None,
        Meta::List(list) if list.path.is_ident("cfg_attr") => {
            let metas = Punctuated::<Meta, Token![,]>::parse_terminated;
            let Ok(metas) = list.parse_args_with(metas) else { return Some(meta.clone()) };
            let condition = metas.first();
            let mut rest = metas.iter().skip(1).filter_map(without_docs).peekable();
            rest.peek()?;
            Some(Meta::List(MetaList { tokens: quote!(#condition #(, #rest)*), ..list.clone() }))
        }
        _ => Some(meta.clone()),
    }
}
