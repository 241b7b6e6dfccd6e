//! How the arguments get into both passes.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote_spanned};
use syn::{
    PatIdent, Path, Type,
    ext::IdentExt as _,
    spanned::Spanned as _,
    visit_mut::{self, VisitMut},
};

use crate::{
    function::{Binding, By},
    validate::{Argument, Role},
};

/// How an argument that the body uses gets into both passes, unless it goes as it is.
pub(crate) struct Route<'a> {
    pub(crate) name: &'a Ident,
    /// Before the first pass.
    pub(crate) hold: Option<TokenStream>,
    /// In each pass.
    pub(crate) rebind: TokenStream,
    /// Whether it depends on the pass.
    pub(crate) turns: bool,
}

/// `portion`: the type and the name of what knows the examples that a pass works with.
pub(crate) fn route<'a>(
    Argument { binding, role }: &'a Argument,
    krate: &Path,
    portion: Option<&(TokenStream, Ident)>,
) -> Option<Route<'a>> {
    let Binding { attrs, name, mutability, by, .. } = binding;
    if !binding.in_body {
        return None;
    }
    let site = Span::mixed_site();
    let (held, value) = (&held(binding), reference(binding));
    let kept = quote_spanned!(site=> let #held = #name;);
    let replayed = quote_spanned!(site=> let #held = #krate::argument::replayed(#name)?;);
    let replay = quote_spanned!(site=> let mut #held = #krate::argument::Replay::new(#name)?;);
    let replay_ref = quote_spanned!(site=> let mut #held = #krate::argument::ReplayRef::new(#name)?;);
    let turn = |kind| quote_spanned!(held.span()=> #krate::argument::#kind::turn(&mut #held, __sam_pass));
    let again = quote_spanned!(site=> #krate::argument::again(#value));
    let some = portion.map(|(of, examples)| quote_spanned!(examples.span()=> #of::of(&#examples, #value)?));
    let (hold, value) = match (role, by) {
        (Some(Role::Batch), By::Value) => (Some(kept), some?),
        (Some(Role::Batch), By::RefToOwned) => (Some(kept), {
            let some = some?;
            quote_spanned!(site=> &#some)
        }),
        (Some(Role::Batch), _) => (None, {
            let some = some?;
            quote_spanned!(site=> &#some)
        }),
        (Some(Role::Replay), By::Value) => (Some(replayed), again),
        (_, By::Value) => (Some(kept), again),
        (_, By::RefToOwned) => (Some(kept), quote_spanned!(site=> &#again)),
        (_, By::RefMutToOwned) => (Some(kept), quote_spanned!(site=> &mut #again)),
        (Some(Role::Replay), By::RefMut) => (Some(replay), turn(quote_spanned!(site=> Replay))),
        (Some(Role::Replay), By::Ref) => (Some(replay_ref), turn(quote_spanned!(site=> ReplayRef))),
        (None, By::RefMut) => (None, quote_spanned!(site=> &mut *#name)),
        (None | Some(Role::With), By::Ref) if mutability.is_some() => (None, quote_spanned!(site=> #name)),
        (Some(Role::With), _) | (None, By::Ref) => return None,
    };
    let cfgs = attrs.iter().filter(|attr| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr"));
    Some(Route {
        name,
        hold: hold.map(|hold| quote_spanned!(site=> #(#cfgs)* #hold)),
        rebind: quote_spanned!(site=> #(#attrs)* let #mutability #name @ (_) = #value;),
        turns: *role == Some(Role::Replay) && matches!(by, By::Ref | By::RefMut),
    })
}

/// What keeps an argument for both passes.
fn held(Binding { name, ty, .. }: &Binding) -> Ident {
    format_ident!("__sam_held_{}", name.unraw(), span = end(ty).resolved_at(Span::mixed_site()))
}

/// A reference to the argument. It stands where the type does, so that what the type lacks is reported there.
pub(crate) fn reference(binding: &Binding) -> TokenStream {
    let Binding { name, by, ty, .. } = binding;
    let (start, held) = (ty.span().resolved_at(Span::mixed_site()), held(binding));
    let mut name = name.clone();
    name.set_span(name.span().located_at(end(ty)));
    match by {
        By::Value => quote_spanned!(start=> &#held),
        By::RefToOwned | By::RefMutToOwned => quote_spanned!(start=> &*#held),
        By::Ref | By::RefMut => name.into_token_stream(),
    }
}

fn end(ty: &Type) -> Span {
    ty.to_token_stream().into_iter().last().map_or_else(Span::call_site, |token| token.span())
}

/// Takes `mut` from the names that the closure binds anew: there it is used, here it would not be.
pub(crate) struct MoveMut<'a>(pub(crate) &'a [Route<'a>]);

impl VisitMut for MoveMut<'_> {
    fn visit_pat_ident_mut(&mut self, pat: &mut PatIdent) {
        if pat.by_ref.is_none() && self.0.iter().any(|route| *route.name == pat.ident) {
            pat.mutability = None;
        }
        visit_mut::visit_pat_ident_mut(self, pat);
    }
}
