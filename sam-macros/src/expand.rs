//! What is written in place of the function: the stages of the paper, one call each.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::{
    Attribute, Meta, MetaList, PatIdent, Path, ReturnType, Safety, Signature, Token, Type,
    ext::IdentExt as _,
    parse_quote_spanned,
    punctuated::Punctuated,
    spanned::Spanned as _,
    visit_mut::{self, VisitMut},
};

use crate::{
    args::{self, Args, Combination, Kind},
    item::{Binding, By, Item},
    valid::{Argument, Loss, Role},
};

// Input
//
//     #[sam(rho = 0.05, p = 2)]
//     fn loss(model: &Net, mut x: Tensor, rng: &mut Rng) -> Result<Tensor> { BODY }
//
// Output
//
//     fn loss(model: &Net, x: Tensor, rng: &mut Rng) -> Result<Tensor> {
//         let sam = ::sam_runtime::Sam::new(0.05).p(2);
//         let held_x = x;
//         let mut body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
//             let mut x = ::sam_runtime::argument::again(&held_x);
//             let rng = &mut *rng;
//             { BODY }
//         };
//         sam.ascend(&mut body)?.perturb()?.descend(&mut body)?.restore()
//     }
//
// and on each `let` of the closure, for those who deny them, an `allow` of clippy's shadowing lints. With `shards`, the
// closure and the stages stand in a loop over the shards; with the other keys about examples, `examples` stands before
// the closure, which asks it for its arguments, and takes the place of `sam` in the stages. All that is quoted has the hygiene of `macro_rules!`
// (`mixed_site`), so that no name here can meet one of the user's.
pub(crate) fn expand(Loss { args, item, arguments }: &Loss) -> TokenStream {
    let site = Span::mixed_site();
    let Item { attrs, vis, sig, .. } = item;
    let krate = match &args.krate {
        Some((_, path)) => path.clone(),
        None => parse_quote_spanned!(site=> ::sam_runtime),
    };
    // What a stage has against the loss, or against its errors, is reported under the return type.
    let returned = match &sig.output {
        ReturnType::Type(_, ty) => ty.span().resolved_at(site),
        ReturnType::Default => site,
    };
    let narrow = Ident::new(
        if matches!(&args.batch, Some((_, batch)) if batch.kind == Kind::Shards) { "shard" } else { "examples" },
        returned,
    );
    let routes: Vec<_> = arguments.iter().filter_map(|argument| route(argument, &krate, &narrow)).collect();

    let sam = configure(args, &krate);
    let size = args.batch.iter().map(|(_, batch)| {
        let (name, size) = (Ident::new(batch.kind.size(), site), &batch.size);
        quote_spanned!(site=> let #name: ::core::primitive::usize = #size;)
    });
    let hold = routes.iter().map(|route| &route.hold);
    let body = body(item, &routes, &krate);
    let descended = quote_spanned!(returned=> .ascend(&mut body)?.perturb()?.descend(&mut body)?);
    let split = arguments.iter().filter(|argument| argument.role == Some(Role::Batch));
    let split = split.map(|argument| reference(&argument.binding));
    let stages = match &args.batch {
        None => quote_spanned!(returned=> #body sam #descended.restore()),
        Some((_, batch)) if batch.kind == Kind::Shards => quote_spanned! {returned=>
            let mut shards = sam.shards(m)? #(.split(#split)?)*;
            while let ::core::option::Option::Some(shard) = shards.next_shard() {
                #body
                sam #descended.restore_into(&mut shards)?;
            }
            shards.loss()
        },
        Some((key, batch)) => {
            let (choose, size) = (Ident::new(&key.to_string(), returned), Ident::new(batch.kind.size(), site));
            quote_spanned! {returned=>
                let examples = sam.#choose(#size)? #(.split(#split)?)*;
                #body
                examples #descended.restore()
            }
        }
    };
    let mut signature = sig.clone();
    MoveMut(&routes).visit_signature_mut(&mut signature);
    let plain = args.plain.iter().map(|(_, name)| plain(item, arguments, name));
    let stages = quote_spanned! {site=>
        #sam
        #(#size)*
        #(#hold)*
        #stages
    };
    // Where the user's body was: lints look there, to see whose function this is.
    let mut block = Group::new(Delimiter::Brace, stages);
    block.set_span(item.body.span());
    quote_spanned! {site=>
        #(#attrs)*
        #vis #signature #block
        #(#plain)*
    }
}

fn configure(Args { rho, p, adaptive, unnormalised, combination, vars, with, .. }: &Args, krate: &Path) -> TokenStream {
    let site = Span::mixed_site();
    if let Some((_, name)) = with {
        let given = quote_spanned!(name.span().resolved_at(site)=> &*#name);
        return quote_spanned!(site=> let sam: &#krate::Sam = #given;);
    }
    let rho = rho.as_ref().map_or_else(|| quote_spanned!(site=> #krate::Sam::RHO), |(_, rho)| rho.to_token_stream());
    let p = p.iter().map(|(_, p)| match args::path(p) {
        Some(inf) if inf.is_ident("inf") => quote_spanned!(site=> ::core::primitive::f64::INFINITY),
        _ => quote_spanned!(site=> #p),
    });
    let eta = adaptive.iter().map(|(_, eta)| match eta {
        None => quote_spanned!(site=> #krate::Sam::ETA),
        _ => eta.to_token_stream(),
    });
    let unnormalised = unnormalised.iter().map(|_| quote_spanned!(site=> .unnormalised()));
    let float = quote_spanned!(site=> ::core::primitive::f64::from);
    let combination = combination.iter().map(|(_, combination)| match combination {
        Combination::Gsam(alpha) => quote_spanned!(site=> Gsam { alpha: #float(#alpha) }),
        Combination::Wsam(gamma) => quote_spanned!(site=> Wsam { gamma: #float(#gamma) }),
        Combination::Stable => quote_spanned!(site=> Stable),
        Combination::SecondOrder => quote_spanned!(site=> SecondOrder),
    });
    let vars = vars.iter().map(|(_, vars)| vars);
    quote_spanned! {site=>
        let sam = #krate::Sam::new(#rho)
            #(.p(#p))*
            #(.adaptive(#eta))*
            #(#unnormalised)*
            #(.combination(#krate::variants::Combination::#combination))*
            #(.vars(#vars))*;
    }
}

/// The closure that a pass runs.
fn body(item: &Item, routes: &[Route<'_>], krate: &Path) -> TokenStream {
    let site = Span::mixed_site();
    let mut output = item.sig.output.clone();
    InferImplTrait.visit_return_type_mut(&mut output);
    let pass = Ident::new(if routes.iter().any(|route| route.turns) { "pass" } else { "_" }, site);
    let rebind = routes.iter().map(|route| &route.rebind);
    let mut block = item.body.to_token_stream();
    if !routes.is_empty() {
        // Around the user's block, so that no item in it comes after a statement.
        block = quote_spanned!(site=> { #(#rebind)* #block });
    }
    quote_spanned!(site=> let mut body = |#pass: #krate::Pass| #output #block;)
}

/// How an argument that the body uses gets into both passes, unless it goes as it is.
struct Route<'a> {
    name: &'a Ident,
    /// Before the first pass.
    hold: Option<TokenStream>,
    /// In each pass.
    rebind: TokenStream,
    /// Whether it depends on the pass.
    turns: bool,
}

/// `narrow`: what knows the examples that a pass works with.
fn route<'a>(Argument { binding, role }: &'a Argument, krate: &Path, narrow: &Ident) -> Option<Route<'a>> {
    let Binding { attrs, name, mutability, by, .. } = binding;
    if !binding.in_body {
        return None;
    }
    let site = Span::mixed_site();
    let (held, value) = (&held(binding), reference(binding));
    let kept = quote_spanned!(site=> let #held = #name;);
    let replay = quote_spanned!(site=> let mut #held = #krate::argument::Replay::new(#name););
    let replay_ref = quote_spanned!(site=> let mut #held = #krate::argument::ReplayRef::new(#name););
    let turn = quote_spanned!(held.span()=> #held.turn(pass));
    let some = quote_spanned!(narrow.span()=> #narrow.of(#value)?);
    let (hold, value) = match (role, by) {
        (Some(Role::Batch), By::Value) => (Some(kept), some),
        (Some(Role::Batch), _) => (None, quote_spanned!(site=> &#some)),
        (_, By::Value) => (Some(kept), quote_spanned!(site=> #krate::argument::again(#value))),
        (Some(Role::Replay), By::RefMut) => (Some(replay), turn),
        (Some(Role::Replay), By::Ref) => (Some(replay_ref), turn),
        (None, By::RefMut) => (None, quote_spanned!(site=> &mut *#name)),
        (None, By::Ref) if mutability.is_some() => (None, quote_spanned!(site=> #name)),
        (Some(Role::With), _) | (None, By::Ref) => return None,
    };
    // The name is the user's, so for clippy the shadowing is too. It has three lints for it.
    let shadow = match (&hold, role) {
        (Some(_), _) => quote_spanned!(site=> shadow_unrelated),
        (None, Some(_)) => quote_spanned!(site=> shadow_reuse),
        (None, None) => quote_spanned!(site=> shadow_same),
    };
    let cfgs = attrs.iter().filter(|attr| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr"));
    Some(Route {
        name,
        hold: hold.map(|hold| quote_spanned!(site=> #(#cfgs)* #hold)),
        rebind: quote_spanned!(site=> #(#attrs)* #[allow(clippy::#shadow)] let #mutability #name = #value;),
        turns: *role == Some(Role::Replay) && *by != By::Value,
    })
}

/// What keeps an argument for both passes.
fn held(Binding { name, ty, .. }: &Binding) -> Ident {
    format_ident!("held_{}", name.unraw(), span = end(ty).resolved_at(Span::mixed_site()))
}

/// A reference to the argument. It stands where the type does, so that what the type lacks is reported there.
fn reference(binding: &Binding) -> TokenStream {
    let Binding { name, by, ty, in_body, .. } = binding;
    let start = ty.span().resolved_at(Span::mixed_site());
    let mut name = name.clone();
    name.set_span(name.span().located_at(end(ty)));
    match by {
        By::Value if *in_body => {
            let held = held(binding);
            quote_spanned!(start=> &#held)
        }
        By::Value => quote_spanned!(start=> &#name),
        By::Ref | By::RefMut => name.into_token_stream(),
    }
}

fn end(ty: &Type) -> Span {
    ty.to_token_stream().into_iter().last().map_or_else(Span::call_site, |token| token.span())
}

/// Takes `mut` from the names that the closure binds anew: there it is used, here it would not be.
struct MoveMut<'a>(&'a [Route<'a>]);

impl VisitMut for MoveMut<'_> {
    fn visit_pat_ident_mut(&mut self, pat: &mut PatIdent) {
        if pat.by_ref.is_none() && self.0.iter().any(|route| *route.name == pat.ident) {
            pat.mutability = None;
        }
        visit_mut::visit_pat_ident_mut(self, pat);
    }
}

/// A closure cannot return `impl Trait`, but `_`.
struct InferImplTrait;

impl VisitMut for InferImplTrait {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Type::ImplTrait(_) = ty {
            *ty = parse_quote_spanned!(ty.span()=> _);
        }
        visit_mut::visit_type_mut(self, ty);
    }
}

fn plain(Item { attrs, vis, sig, body }: &Item, arguments: &[Argument], name: &Ident) -> TokenStream {
    let original = &sig.ident;
    let mut docs = vec![format!(" `{original}` without SAM: the function as it was written.")];
    // What clippy wants to read of a public function.
    let safety = matches!(sig.safety, Safety::Unsafe(_)).then_some("Safety");
    for section in ["Errors", "Panics"].into_iter().chain(safety) {
        docs.extend([String::new(), format!(" # {section}"), String::new(), format!(" As `{original}`.")]);
    }
    let attrs = attrs.iter().filter_map(|attr| Some(Attribute { meta: without_docs(&attr.meta)?, ..attr.clone() }));
    // The loss warns of what nobody uses; here is also unused what the attribute alone does.
    let quiet = arguments.iter().find(|argument| !argument.binding.in_body).map(|_| quote!(#[allow(unused_variables)]));
    // Written by the user, as far as clippy can see: what an attribute writes does not count as documentation for it.
    let docs = quote_spanned!(name.span()=> #(#[doc = #docs])*);
    // An error that has to do with the whole function begins at its name.
    let signature = Signature { ident: name.clone(), fn_token: Token![fn](name.span()), ..sig.clone() };
    quote_spanned! {Span::mixed_site()=>
        #docs
        #quiet
        #(#attrs)*
        #vis #signature #body
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
