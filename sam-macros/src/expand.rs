//! Expansion: the stages of the paper, one call each.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens as _, quote_spanned};
use syn::{
    Path, Receiver, ReturnType, Type, parse_quote_spanned,
    spanned::Spanned as _,
    visit_mut::{self, VisitMut},
};

use crate::{
    args::{self, Args, Ascent, Batch, Combination, Keyed, Weighting},
    function::Function,
    keys::BatchKey,
    plain::plain,
    rebind::{ArgRebinding, MoveMut, Selector, rebinding, reference},
    validate::{Argument, Loss, Role},
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
//             let mut x @ (_) = ::sam_runtime::__private::clone_for_pass(&__sam_held_x);
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
// With `shards`, the closure and the stages are in a loop over the shards. With the other keys that select from a
// batch, the closure takes its arguments from `__sam_selection`, whose `ascend` is the first stage.
//
// It has to compile in any edition, under any lint and next to any names:
//
// - Every function is called by its path: a method call could mean a method of a trait in scope.
// - Names begin with `__sam`: a `let` cannot have the name of a constant or a static, whatever its hygiene.
//   Otherwise all that is quoted has the hygiene of `macro_rules!` (`mixed_site`).
// - No temporary lives to the end of a block, as editions differ in when it is dropped then. So the last expression
//   is a name, and the body is in an arm of a `match`, at the end of which temporaries are dropped in every edition.
//   There its braces are needed, too: `unused_braces` checks blocks that end a block.
// - `x @ (_)` is `x`, but clippy sees that a macro has written it, and does not report that it shadows an argument.
//   There is no `#[allow]`: it is an error below `#![forbid]`.
pub(crate) fn expand(Loss { args, function, arguments }: &Loss) -> TokenStream {
    let site = Span::mixed_site();
    let Function { attrs, vis, sig, .. } = function;
    let krate = match &args.krate {
        Some(Keyed { value: path, .. }) => path.clone(),
        None => parse_quote_spanned!(site=> ::sam_runtime),
    };
    // Errors about the type of the loss, or of its errors, are reported at the return type.
    let returned = match &sig.output {
        ReturnType::Type(_, ty) => ty.span().resolved_at(site),
        ReturnType::Default => site,
    };
    let there = located(&krate, returned);
    let selector = args.batch.as_ref().map(|batch| {
        let (ty, name) = match batch.value.key {
            BatchKey::Shards => ("Shard", "__sam_shard"),
            _ => ("BatchSelection", "__sam_selection"),
        };
        let ty = Ident::new(ty, returned);
        Selector { ty: quote_spanned!(returned=> #there::#ty), name: Ident::new(name, returned) }
    });
    let rebindings: Vec<_> =
        arguments.iter().filter_map(|argument| rebinding(argument, &krate, selector.as_ref())).collect();

    let sam = configure(args, &krate);
    let pieces = args.batch.iter().map(|batch| pieces(batch, args, &there, returned));
    let given = given(args, returned);
    let hold = rebindings.iter().map(|rebinding| &rebinding.hold);
    let hold_self = function
        .mutable_self()
        .map(|Receiver { self_token, .. }| quote_spanned!(site=> let __sam_held_self = #self_token;));
    let (output, is_inferred) = closure_output(&sig.output);
    let mut body = body(function, &rebindings, &output, &krate);
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
        Some(Keyed { value: batch, .. }) if batch.key == BatchKey::Shards => {
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
                &Ident::new("__sam_selection", returned),
            );
            let first = quote_spanned!(returned=> #there::BatchSelection::ascend(&__sam_selection, &mut __sam_body));
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
    MoveMut(&rebindings).visit_signature_mut(&mut signature);
    let plain = args.plain.iter().map(|name| plain(function, &name.value));
    let (error, loss) = if is_inferred {
        // Tells the compiler that the error's type is that of the closure.
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
    // The span of the user's body: lints take it for the function's.
    let mut block = Group::new(Delimiter::Brace, stages);
    block.set_span(function.body.span());
    quote_spanned! {site=>
        #(#attrs)*
        #vis #signature #block
        #(#plain)*
    }
}

/// The same path, with the location of another span.
fn located(path: &Path, at: Span) -> TokenStream {
    let token = |mut token: TokenTree| {
        token.set_span(token.span().located_at(at));
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

/// The value that splits the batch, before it has the arguments.
fn pieces(Keyed { key, value: batch }: &Keyed<Batch>, args: &Args, krate: &TokenStream, returned: Span) -> TokenStream {
    let (site, given) = (Span::mixed_site(), given(args, returned));
    let (owner, pieces) = match batch.key {
        BatchKey::Shards => ("Shards", "__sam_shards"),
        _ => ("BatchSelection", "__sam_selection"),
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

/// Gives the arguments to `pieces`, of the type `owner`.
fn split(arguments: &[Argument], owner: &TokenStream, pieces: &Ident) -> TokenStream {
    let split =
        arguments.iter().filter(|argument| argument.role == Some(Role::Batch)).map(|Argument { binding, .. }| {
            let argument = reference(binding);
            quote_spanned!(pieces.span()=> let #pieces = #owner::split(#pieces, #argument)?;)
        });
    split.collect()
}

/// The statements that make the `Sam`, one method for each key.
fn configure(args: &Args, krate: &Path) -> TokenStream {
    let site = Span::mixed_site();
    let Args { rho, p, adaptive, unnormalized, combination, vars, buffers, all_reduce, ascent, with, .. } = args;
    if let Some(Keyed { value: name, .. }) = with {
        let given = quote_spanned!(name.span().resolved_at(site)=> &*#name);
        return quote_spanned!(site=> let __sam: &#krate::Sam = #given;);
    }
    let rho = rho.as_ref().map(|rho| rho.value.to_token_stream());
    let rho = rho.unwrap_or_else(|| quote_spanned!(site=> #krate::Sam::DEFAULT_RHO));
    let p = p.iter().map(|p| match args::path(&p.value) {
        Some(inf) if inf.is_ident("inf") => quote_spanned!(site=> ::core::primitive::f64::INFINITY),
        _ => p.value.to_token_stream(),
    });
    let eta = adaptive.iter().map(|eta| match &eta.value {
        None => quote_spanned!(site=> #krate::Sam::ASAM_ETA),
        _ => eta.value.to_token_stream(),
    });
    let unnormalized =
        unnormalized.iter().map(|_| quote_spanned!(site=> let __sam = #krate::Sam::unnormalized(__sam);));
    let float = quote_spanned!(site=> <::core::primitive::f64 as ::core::convert::From<_>>::from);
    let combination = combination.iter().map(|combination| match &combination.value {
        Combination::Gsam(alpha) => quote_spanned!(site=> Gsam { alpha: #float(#alpha) }),
        Combination::Wsam(gamma) => quote_spanned!(site=> Wsam { gamma: #float(#gamma) }),
        Combination::Stable => quote_spanned!(site=> Rescaled),
        Combination::SecondOrder => quote_spanned!(site=> SecondOrder),
    });
    let vars = vars.iter().map(|vars| &vars.value);
    let buffers = buffers.iter().map(|buffers| &buffers.value);
    let ranks = all_reduce.iter().map(|ranks| &ranks.value);
    let synchronized = ascent.iter().filter(|ascent| ascent.value == Ascent::Synchronized);
    let synchronized =
        synchronized.map(|_| quote_spanned!(site=> let __sam = #krate::Sam::synchronized_ascent(__sam);));
    quote_spanned! {site=>
        let __sam = #krate::Sam::new(#rho);
        #(let __sam = #krate::Sam::p(__sam, #p);)*
        #(let __sam = #krate::Sam::adaptive(__sam, #eta);)*
        #(#unnormalized)*
        #(let __sam = #krate::Sam::combination(__sam, #krate::variants::Combination::#combination);)*
        #(let __sam = #krate::Sam::vars(__sam, #krate::__private::variables(#vars));)*
        #(let __sam = #krate::Sam::buffers(__sam, #krate::__private::variables(#buffers));)*
        #(let __sam = #krate::Sam::all_reduce(__sam, #ranks);)*
        #(#synchronized)*
    }
}

/// The closure that a pass runs.
fn body(function: &Function, rebindings: &[ArgRebinding<'_>], output: &ReturnType, krate: &Path) -> TokenStream {
    let site = Span::mixed_site();
    let pass = if rebindings.iter().any(|rebinding| rebinding.depends_on_pass) { "__sam_pass" } else { "_" };
    let pass = Ident::new(pass, site);
    let rebind = rebindings.iter().map(|rebinding| &rebinding.rebind);
    let mutable_self = function
        .mutable_self()
        .map(|Receiver { self_token, .. }| quote_spanned!(site=> #self_token = __sam_held_self;));
    let mut block = function.body.to_token_stream();
    if !rebindings.is_empty() || mutable_self.is_some() {
        // Around the user's block, so that no item in it comes after a statement.
        block = quote_spanned!(site=> { #mutable_self #(#rebind)* match () { () => #block } });
    }
    quote_spanned!(site=> let mut __sam_body = |#pass: #krate::Pass| #output #block;)
}

/// The return type of the closure, and whether the compiler infers a part of it.
fn closure_output(output: &ReturnType) -> (ReturnType, bool) {
    let (mut output, mut infer) = (output.clone(), InferImplTrait::default());
    infer.visit_return_type_mut(&mut output);
    (output, infer.found)
}

/// Replaces `impl Trait`, which a closure cannot return, by `_`.
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
