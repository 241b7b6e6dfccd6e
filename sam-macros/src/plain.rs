//! The function without SAM: the one that `plain` names, and the one that is refused.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::{
    Attribute, Meta, MetaList, PatIdent, PatType, Safety, Signature, Token,
    punctuated::Punctuated,
    visit_mut::{self, VisitMut},
};

use crate::function::{Binding, Function};

/// The function that is refused. Arguments that only the attribute uses are not reported as unused.
pub(crate) fn as_written(function: &Function) -> TokenStream {
    let Function { attrs, vis, sig, body } = function;
    let mut signature = sig.clone();
    Quiet(&function.bindings()).visit_signature_mut(&mut signature);
    quote!(#(#attrs)* #vis #signature #body)
}

pub(crate) fn plain(function: &Function, name: &Ident) -> TokenStream {
    let Function { attrs, vis, sig, body } = function;
    let original = &sig.ident;
    let mut docs = vec![format!(" `{original}` without SAM: the function as it was written.")];
    // The sections that clippy wants for a public function.
    let safety = matches!(sig.safety, Safety::Unsafe(_)).then_some("Safety");
    for section in ["Errors", "Panics"].into_iter().chain(safety) {
        docs.extend([String::new(), format!(" # {section}"), String::new(), format!(" As `{original}`.")]);
    }
    let attrs = attrs.iter().filter_map(|attr| Some(Attribute { meta: without_docs(&attr.meta)?, ..attr.clone() }));
    // With a span of the user's: clippy does not count documentation that a macro writes.
    let docs = quote_spanned!(name.span()=> #(#[doc = #docs])*);
    // Errors about the whole function begin at its name.
    let mut signature = Signature { ident: name.clone(), fn_token: Token![fn](name.span()), ..sig.clone() };
    Quiet(&function.bindings()).visit_signature_mut(&mut signature);
    quote_spanned! {Span::mixed_site()=>
        #docs
        #(#attrs)*
        #vis #signature #body
    }
}

/// Gives the names that the body does not use the span of a macro, for which the compiler does not report unused names.
struct Quiet<'a>(&'a [Binding]);

impl VisitMut for Quiet<'_> {
    /// `#[expect(unused)]` needs the report.
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

/// Also without the documentation inside `cfg_attr`.
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
