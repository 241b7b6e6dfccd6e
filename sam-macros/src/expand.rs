//! What is written in place of the function: the stages of the paper, one call each.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::{
    Attribute, Meta, MetaList, PatIdent, PatType, Path, Receiver, ReturnType, Safety, Signature, Token, Type,
    ext::IdentExt as _,
    parse_quote_spanned,
    punctuated::Punctuated,
    spanned::Spanned as _,
    visit_mut::{self, VisitMut},
};

use crate::{
    args::{self, Args, Batch, Combination, Keyed, Kind, Weighting},
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
//         let __sam = ::sam_runtime::Sam::new(0.05);
//         let __sam = ::sam_runtime::Sam::p(__sam, 2);
//         let __sam_held_x = x;
//         let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor> {
//             let mut x @ (_) = ::sam_runtime::__private::again(&__sam_held_x);
//             let rng @ (_) = &mut *rng;
//             match () { () => { BODY } }
//         };
//         let __sam_ascent = ::sam_runtime::Sam::ascend(&__sam, &mut __sam_body)?;
//         let __sam_perturbed = ::sam_runtime::Ascent::perturb(__sam_ascent)?;
//         let __sam_descent = ::sam_runtime::Perturbed::descend(__sam_perturbed, &mut __sam_body)?;
//         let __sam_loss = ::sam_runtime::Descent::restore(__sam_descent);
//         __sam_loss
//     }
//
// With `shards`, the closure and the stages stand in a loop over the shards. With the other keys about a batch, the
// closure asks `__sam_examples` for its arguments, and the stages begin there.
//
// It has to compile in any edition, below any lint and beside any names:
//
// - Every function is called by its path: a method call could mean a method of some trait that is in scope.
// - Names begin with `__sam`: a `let` cannot have the name of a constant or a static, whatever its hygiene.
//   Otherwise all that is quoted has the hygiene of `macro_rules!` (`mixed_site`).
// - No temporary lives to the end of a block: editions differ in when it is dropped then. So the last expression is a
//   name, and the body stands in an arm of a `match`, at the end of which temporaries are dropped in every edition.
//   There its braces are needed, too: `unused_braces` looks at blocks that end a block.
// - `x @ (_)` is `x`, but clippy sees that a macro has written it, and does not report that it shadows an argument. There
//   is no `#[allow]`: it is an error below `#![forbid]`.
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
    let there = located(&krate, returned);
    let portion = args.batch.as_ref().map(|(_, batch)| match batch.kind {
        Kind::Shards => (quote_spanned!(returned=> #there::Shard), Ident::new("__sam_shard", returned)),
        _ => (quote_spanned!(returned=> #there::BatchSelection), Ident::new("__sam_examples", returned)),
    });
    let routes: Vec<_> = arguments.iter().filter_map(|argument| route(argument, &krate, portion.as_ref())).collect();

    let sam = configure(args, &krate);
    let pieces = args.batch.iter().map(|batch| pieces(batch, args, &there, returned));
    let given = given(args, returned);
    let hold = routes.iter().map(|route| &route.hold);
    let hold_self = item
        .mutable_self()
        .map(|Receiver { self_token, .. }| quote_spanned!(site=> let __sam_held_self = #self_token;));
    let (output, is_inferred) = closure_output(&sig.output);
    let mut body = body(item, &routes, &output, &krate);
    if is_inferred {
        body.extend(quote_spanned!(site=> #krate::__private::has_error(&__sam_body, __sam_error);));
    }
    let stages = match &args.batch {
        None => {
            let stages =
                stages(&quote_spanned!(returned=> #there::Sam::ascend(#given, &mut __sam_body)), &there, returned);
            quote_spanned! {returned=>
                #body
                #stages
                let __sam_loss = #there::Descent::restore(__sam_descent);
            }
        }
        Some((_, batch)) if batch.kind == Kind::Shards => {
            let split =
                split(arguments, &quote_spanned!(returned=> #there::Shards), &Ident::new("__sam_shards", returned));
            let stages =
                stages(&quote_spanned!(returned=> #there::Sam::ascend(#given, &mut __sam_body)), &there, returned);
            quote_spanned! {returned=>
                #split
                let mut __sam_shards = __sam_shards;
                while let ::core::option::Option::Some(__sam_shard) = #there::Shards::next_shard(&mut __sam_shards) {
                    #body
                    #stages
                    #there::Descent::restore_into(__sam_descent, &mut __sam_shards)?;
                }
                let __sam_loss = #there::Shards::loss(__sam_shards);
            }
        }
        Some(_) => {
            let split = split(
                arguments,
                &quote_spanned!(returned=> #there::BatchSelection),
                &Ident::new("__sam_examples", returned),
            );
            let first = quote_spanned!(returned=> #there::BatchSelection::ascend(&__sam_examples, &mut __sam_body));
            let stages = stages(&first, &there, returned);
            quote_spanned! {returned=>
                #split
                #body
                #stages
                let __sam_loss = #there::Descent::restore(__sam_descent);
            }
        }
    };
    let mut signature = sig.clone();
    MoveMut(&routes).visit_signature_mut(&mut signature);
    let plain = args.plain.iter().map(|(_, name)| plain(item, name));
    let (error, loss) = if is_inferred {
        // The error's type is that of the closure, which the compiler has to be told.
        let error = quote_spanned!(returned=> let __sam_error = ::core::marker::PhantomData;);
        (Some(error), quote_spanned!(returned=> #krate::__private::with_error(__sam_loss, __sam_error)))
    } else {
        (None, quote_spanned!(returned=> __sam_loss))
    };
    let stages = quote_spanned! {site=>
        #sam
        #(#pieces)*
        #hold_self
        #(#hold)*
        #error
        #stages
        #loss
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

/// The same path, standing at another place.
fn located(path: &Path, place: Span) -> TokenStream {
    let token = |mut token: TokenTree| {
        token.set_span(token.span().located_at(place));
        token
    };
    path.to_token_stream().into_iter().map(token).collect()
}

/// A reference to what holds the configuration.
fn given(args: &Args, span: Span) -> TokenStream {
    if args.with.is_some() { quote_spanned!(span=> __sam) } else { quote_spanned!(span=> &__sam) }
}

fn stages(first: &TokenStream, krate: &TokenStream, returned: Span) -> TokenStream {
    quote_spanned! {returned=>
        let __sam_ascent = #first?;
        let __sam_perturbed = #krate::Ascent::perturb(__sam_ascent)?;
        let __sam_descent = #krate::Perturbed::descend(__sam_perturbed, &mut __sam_body)?;
    }
}

/// What knows the pieces of the batch, before it knows the arguments.
fn pieces((key, batch): &Keyed<Batch>, args: &Args, krate: &TokenStream, returned: Span) -> TokenStream {
    let (site, given) = (Span::mixed_site(), given(args, returned));
    let (owner, pieces) = match batch.kind {
        Kind::Shards => ("Shards", "__sam_shards"),
        _ => ("BatchSelection", "__sam_examples"),
    };
    let (owner, pieces) = (Ident::new(owner, returned), Ident::new(pieces, returned));
    let (choose, size) = (Ident::new(&key.to_string(), returned), &batch.size);
    let weighting = match &batch.weighting {
        Weighting::Mean => None,
        Weighting::Sum => Some(quote_spanned!(returned=> let #pieces = #krate::#owner::sum(#pieces);)),
        Weighting::Weights(weights) => {
            Some(quote_spanned!(returned=> let #pieces = #krate::#owner::weights(#pieces, &(#weights))?;))
        }
    };
    let size = quote_spanned!(site=> let __sam_size: ::core::primitive::usize = #size;);
    quote_spanned! {returned=>
        #size
        let #pieces = #krate::Sam::#choose(#given, __sam_size)?;
        #weighting
    }
}

/// `owner`: the type of `pieces`, which is to know the arguments that are split.
fn split(arguments: &[Argument], owner: &TokenStream, pieces: &Ident) -> TokenStream {
    let split =
        arguments.iter().filter(|argument| argument.role == Some(Role::Batch)).map(|Argument { binding, .. }| {
            let argument = reference(binding);
            quote_spanned!(pieces.span()=> let #pieces = #owner::split(#pieces, #argument)?;)
        });
    split.collect()
}

fn configure(Args { rho, p, adaptive, unnormalized, combination, vars, with, .. }: &Args, krate: &Path) -> TokenStream {
    let site = Span::mixed_site();
    if let Some((_, name)) = with {
        let given = quote_spanned!(name.span().resolved_at(site)=> &*#name);
        return quote_spanned!(site=> let __sam: &#krate::Sam = #given;);
    }
    let rho =
        rho.as_ref().map_or_else(|| quote_spanned!(site=> #krate::Sam::DEFAULT_RHO), |(_, rho)| rho.to_token_stream());
    let p = p.iter().map(|(_, p)| match args::path(p) {
        Some(inf) if inf.is_ident("inf") => quote_spanned!(site=> ::core::primitive::f64::INFINITY),
        _ => quote_spanned!(site=> #p),
    });
    let eta = adaptive.iter().map(|(_, eta)| match eta {
        None => quote_spanned!(site=> #krate::Sam::ASAM_ETA),
        _ => eta.to_token_stream(),
    });
    let unnormalized =
        unnormalized.iter().map(|_| quote_spanned!(site=> let __sam = #krate::Sam::unnormalized(__sam);));
    let float = quote_spanned!(site=> <::core::primitive::f64 as ::core::convert::From<_>>::from);
    let combination = combination.iter().map(|(_, combination)| match combination {
        Combination::Gsam(alpha) => quote_spanned!(site=> Gsam { alpha: #float(#alpha) }),
        Combination::Wsam(gamma) => quote_spanned!(site=> Wsam { gamma: #float(#gamma) }),
        Combination::Stable => quote_spanned!(site=> Rescaled),
        Combination::SecondOrder => quote_spanned!(site=> SecondOrder),
    });
    let vars = vars.iter().map(|(_, vars)| vars);
    quote_spanned! {site=>
        let __sam = #krate::Sam::new(#rho);
        #(let __sam = #krate::Sam::p(__sam, #p);)*
        #(let __sam = #krate::Sam::adaptive(__sam, #eta);)*
        #(#unnormalized)*
        #(let __sam = #krate::Sam::combination(__sam, #krate::variants::Combination::#combination);)*
        #(let __sam = #krate::Sam::vars(__sam, #krate::__private::variables(#vars));)*
    }
}

/// The closure that a pass runs.
fn body(item: &Item, routes: &[Route<'_>], output: &ReturnType, krate: &Path) -> TokenStream {
    let site = Span::mixed_site();
    let pass = Ident::new(if routes.iter().any(|route| route.turns) { "__sam_pass" } else { "_" }, site);
    let rebind = routes.iter().map(|route| &route.rebind);
    let mutable_self =
        item.mutable_self().map(|Receiver { self_token, .. }| quote_spanned!(site=> #self_token = __sam_held_self;));
    let mut block = item.body.to_token_stream();
    if !routes.is_empty() || mutable_self.is_some() {
        // Around the user's block, so that no item in it comes after a statement.
        block = quote_spanned!(site=> { #mutable_self #(#rebind)* match () { () => #block } });
    }
    quote_spanned!(site=> let mut __sam_body = |#pass: #krate::Pass| #output #block;)
}

/// What the closure returns, and whether a part of it is left to the compiler.
fn closure_output(output: &ReturnType) -> (ReturnType, bool) {
    let (mut output, mut infer) = (output.clone(), InferImplTrait::default());
    infer.visit_return_type_mut(&mut output);
    (output, infer.found)
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

/// `portion`: the type and the name of what knows the examples that a pass works with.
fn route<'a>(
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
    let replayed = quote_spanned!(site=> let #held = #krate::__private::replayed(#name)?;);
    let replay = quote_spanned!(site=> let mut #held = #krate::__private::Replay::new(#name)?;);
    let replay_ref = quote_spanned!(site=> let mut #held = #krate::__private::ReplayRef::new(#name)?;);
    let turn = |kind| quote_spanned!(held.span()=> #krate::__private::#kind::for_pass(&mut #held, __sam_pass));
    let again = quote_spanned!(site=> #krate::__private::clone_for_pass(#value));
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
fn reference(binding: &Binding) -> TokenStream {
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
#[derive(Default)]
struct InferImplTrait {
    found: bool,
}

impl VisitMut for InferImplTrait {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Type::ImplTrait(_) = ty {
            self.found = true;
            *ty = parse_quote_spanned!(ty.span()=> _);
        }
        visit_mut::visit_type_mut(self, ty);
    }
}

/// The function that is refused. What the attribute alone would use is not at fault, and is not reported as unused.
pub(crate) fn as_written(item: &Item) -> TokenStream {
    let Item { attrs, vis, sig, body } = item;
    let mut signature = sig.clone();
    Quiet(&item.bindings()).visit_signature_mut(&mut signature);
    quote!(#(#attrs)* #vis #signature #body)
}

fn plain(item: &Item, name: &Ident) -> TokenStream {
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
