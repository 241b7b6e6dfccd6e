//! Expansion: how the arguments are passed to the closure in each pass.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote_spanned};
use syn::{
    PatIdent, Path, Type,
    ext::IdentExt as _,
    spanned::Spanned as _,
    visit_mut::{self, VisitMut},
};

use crate::{
    function::{Binding, PassBy},
    validate::{Argument, Role},
};

/// How an argument is passed to the closure in each pass. One without it is captured as it is.
pub(crate) struct ArgRebinding<'a> {
    pub(crate) name: &'a Ident,
    /// The statement before the first pass.
    pub(crate) hold: Option<TokenStream>,
    /// The statement in each pass.
    pub(crate) rebind: TokenStream,
    pub(crate) depends_on_pass: bool,
}

/// The runtime value that slices the arguments of a batch: its type and its name.
pub(crate) struct Selector {
    pub(crate) ty: TokenStream,
    pub(crate) name: Ident,
}

pub(crate) fn rebinding<'a>(
    Argument { binding, role }: &'a Argument,
    krate: &Path,
    selector: Option<&Selector>,
) -> Option<ArgRebinding<'a>> {
    let Binding { attrs, name, mutability, pass_by, .. } = binding;
    if !binding.in_body {
        return None;
    }
    let site = Span::mixed_site();
    let (held, value) = (&held(binding), reference(binding));
    let keep = quote_spanned!(site=> let #held = #name;);
    let replayed = quote_spanned!(site=> let #held = #krate::__private::replayed(#name)?;);
    let replay = quote_spanned!(site=> let mut #held = #krate::__private::Replay::new(#name)?;);
    let replay_ref = quote_spanned!(site=> let mut #held = #krate::__private::ReplayRef::new(#name)?;);
    let for_pass = |replay| quote_spanned!(held.span()=> #krate::__private::#replay::for_pass(&mut #held, __sam_pass));
    let cloned = quote_spanned!(site=> #krate::__private::clone_for_pass(#value));
    let selected = selector.map(|Selector { ty, name }| quote_spanned!(name.span()=> #ty::of(&#name, #value)?));
    let (hold, value) = match (role, pass_by) {
        (Some(Role::Batch), PassBy::Value) => (Some(keep), selected?),
        (Some(Role::Batch), PassBy::RefToOwned) => {
            let selected = selected?;
            (Some(keep), quote_spanned!(site=> &#selected))
        }
        (Some(Role::Batch), _) => {
            let selected = selected?;
            (None, quote_spanned!(site=> &#selected))
        }
        (Some(Role::Replay), PassBy::Value) => (Some(replayed), cloned),
        (_, PassBy::Value) => (Some(keep), cloned),
        (_, PassBy::RefToOwned) => (Some(keep), quote_spanned!(site=> &#cloned)),
        (_, PassBy::RefMutToOwned) => (Some(keep), quote_spanned!(site=> &mut #cloned)),
        (Some(Role::Replay), PassBy::RefMut) => (Some(replay), for_pass(quote_spanned!(site=> Replay))),
        (Some(Role::Replay), PassBy::Ref) => (Some(replay_ref), for_pass(quote_spanned!(site=> ReplayRef))),
        (None, PassBy::RefMut) => (None, quote_spanned!(site=> &mut *#name)),
        (None | Some(Role::With), PassBy::Ref) if mutability.is_some() => (None, quote_spanned!(site=> #name)),
        (Some(Role::With), _) | (None, PassBy::Ref) => return None,
    };
    let cfgs = attrs.iter().filter(|attr| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr"));
    Some(ArgRebinding {
        name,
        hold: hold.map(|hold| quote_spanned!(site=> #(#cfgs)* #hold)),
        rebind: quote_spanned!(site=> #(#attrs)* let #mutability #name @ (_) = #value;),
        depends_on_pass: *role == Some(Role::Replay) && matches!(pass_by, PassBy::Ref | PassBy::RefMut),
    })
}

/// The variable that keeps an argument for both passes.
fn held(Binding { name, ty, .. }: &Binding) -> Ident {
    format_ident!("__sam_held_{}", name.unraw(), span = end(ty).resolved_at(Span::mixed_site()))
}

/// A reference to the argument, with the span of its type: what the type lacks is reported there.
pub(crate) fn reference(binding: &Binding) -> TokenStream {
    let Binding { name, pass_by, ty, .. } = binding;
    let (start, held) = (ty.span().resolved_at(Span::mixed_site()), held(binding));
    let mut name = name.clone();
    name.set_span(name.span().located_at(end(ty)));
    match pass_by {
        PassBy::Value => quote_spanned!(start=> &#held),
        PassBy::RefToOwned | PassBy::RefMutToOwned => quote_spanned!(start=> &*#held),
        PassBy::Ref | PassBy::RefMut => name.into_token_stream(),
    }
}

fn end(ty: &Type) -> Span {
    ty.to_token_stream().into_iter().last().map_or_else(Span::call_site, |token| token.span())
}

/// Removes `mut` from the names that the closure binds again: it would be unused in the signature.
pub(crate) struct MoveMut<'a>(pub(crate) &'a [ArgRebinding<'a>]);

impl VisitMut for MoveMut<'_> {
    fn visit_pat_ident_mut(&mut self, pat: &mut PatIdent) {
        if pat.by_ref.is_none() && self.0.iter().any(|rebinding| *rebinding.name == pat.ident) {
            pat.mutability = None;
        }
        visit_mut::visit_pat_ident_mut(self, pat);
    }
}
