//! `#[derive(Aux)]` and `#[derive(LossOutput)]`: each method calls the same method of every field.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::{
    Attribute, Error, Field, Fields, Generics, Index, Item, Member, Path, Result, Token, Type, parse_quote,
    parse_quote_spanned, spanned::Spanned as _,
};

// Input
//
//     #[derive(Aux)]
//     struct Metrics<T> { logits: Tensor, rest: T }
//
// Output
//
//     impl<T: ::sam_runtime::Aux> ::sam_runtime::Aux for Metrics<T> {
//         fn detached(self) -> Result<Self> {
//             match self {
//                 Self { logits: __sam_0, rest: __sam_1 } => Ok(Self {
//                     logits: <Tensor as ::sam_runtime::Aux>::detached(__sam_0)?,
//                     rest: <T as ::sam_runtime::Aux>::detached(__sam_1)?,
//                 }),
//             }
//         }
//
//         fn join_shards(__sam_parts: Vec<(f64, Self)>) -> Result<Self> {
//             let mut __sam_0 = Vec::new();
//             let mut __sam_1 = Vec::new();
//             for (__sam_share, __sam_part) in __sam_parts {
//                 let Self { logits: __sam_value_0, rest: __sam_value_1 } = __sam_part;
//                 Vec::push(&mut __sam_0, (__sam_share, __sam_value_0));
//                 Vec::push(&mut __sam_1, (__sam_share, __sam_value_1));
//             }
//             Ok(Self {
//                 logits: <Tensor as ::sam_runtime::Aux>::join_shards(__sam_0)?,
//                 rest: <T as ::sam_runtime::Aux>::join_shards(__sam_1)?,
//             })
//         }
//     }
//
// with all names as paths. An enum keeps the trait's `join_shards`, which is an error at run time.
pub(crate) fn aux(input: TokenStream) -> Result<TokenStream> {
    let item = syn::parse2(input)?;
    let (ident, attrs, generics) = match &item {
        Item::Struct(item) => (&item.ident, &item.attrs, &item.generics),
        Item::Enum(item) => (&item.ident, &item.attrs, &item.generics),
        other => {
            return Err(Error::new_spanned(
                other,
                "`Aux` can be derived only for structs and enums: implement it by hand",
            ));
        }
    };
    let names = Names::new(attrs)?;
    let Names { krate, candle, result, vec, f64 } = &names;
    let aux = Trait { path: parse_quote!(#krate::Aux), detached: "detached" };
    let bound = &aux.path;
    let (arms, join) = match &item {
        Item::Enum(item) => {
            let arms = item.variants.iter().map(|variant| {
                let variant_name = &variant.ident;
                arm(&quote!(Self::#variant_name), &variant.fields, &vec![&aux; variant.fields.len()])
            });
            (arms.collect(), None)
        }
        Item::Struct(item) => {
            let traits = vec![&aux; item.fields.len()];
            (arm(&quote!(Self), &item.fields, &traits), Some(join(&item.fields, &traits, &names)))
        }
        _ => (TokenStream::new(), None),
    };
    let generics = bounded(generics, bound);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let join = join.map(|join| {
        quote! {
            fn join_shards(__sam_parts: #vec<(#f64, Self)>) -> #candle::Result<Self> {
                #join
            }
        }
    });
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics #bound for #ident #type_generics #where_clause {
            fn detached(self) -> #candle::Result<Self> {
                #result::Ok(match self { #arms })
            }
            #join
        }
    })
}

// As above, with `LossOutput` for the field of the loss and `Aux` for the others, and with the two methods that `Aux`
// lacks.
pub(crate) fn loss_output(input: TokenStream) -> Result<TokenStream> {
    let item = match syn::parse2(input)? {
        Item::Struct(item) => item,
        other => {
            let why =
                "`LossOutput` can be derived only for structs: a loss function returns a `Tensor`, a tuple or a struct";
            return Err(Error::new_spanned(other, why));
        }
    };
    let names = Names::new(&item.attrs)?;
    let Names { krate, candle, result, vec, f64 } = &names;
    let loss = match &item.fields {
        Fields::Named(fields) => {
            fields.named.iter().position(|field| field.ident.as_ref().is_some_and(|name| name == "loss"))
        }
        Fields::Unnamed(fields) if !fields.unnamed.is_empty() => Some(0),
        _ => None,
    };
    let Some(loss) = loss else {
        let why = "`LossOutput` needs the loss: add a field `loss: Tensor`";
        return Err(Error::new_spanned(&item.ident, why));
    };
    let loss_output = Trait { path: parse_quote!(#krate::LossOutput), detached: "into_detached" };
    let aux = Trait { path: parse_quote!(#krate::Aux), detached: "detached" };
    let traits: Vec<_> = (0..item.fields.len()).map(|i| if i == loss { &loss_output } else { &aux }).collect();
    let (arm, join) = (arm(&quote!(Self), &item.fields, &traits), join(&item.fields, &traits, &names));
    let field = item.fields.iter().nth(loss).map(|field| &field.ty);
    let member = members(&item.fields).swap_remove(loss);
    let (ident, path) = (&item.ident, &loss_output.path);
    let generics = bounded(&item.generics, &aux.path);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let loss_span = field.map_or_else(Span::mixed_site, |ty| ty.span().resolved_at(Span::mixed_site()));
    // Another type than `Tensor` is reported at the type of the field.
    let this = Ident::new("self", loss_span);
    let a_tensor = quote_spanned!(loss_span=> &#this.#member);
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics #path for #ident #type_generics #where_clause {
            fn loss(&#this) -> &#candle::Tensor {
                #a_tensor
            }
            fn into_detached(self) -> #candle::Result<Self> {
                #result::Ok(match self { #arm })
            }
            fn with_loss(self, __sam_loss: #candle::Tensor) -> Self {
                Self { #member: __sam_loss, ..self }
            }
            fn join_shards(__sam_parts: #vec<(#f64, Self)>) -> #candle::Result<Self> {
                #join
            }
        }
    })
}

/// A trait that a field has to implement, and its name for the method that removes the graph.
struct Trait {
    path: Path,
    detached: &'static str,
}

/// Paths that mean the same in any scope.
struct Names {
    krate: Path,
    candle: Path,
    result: Path,
    vec: Path,
    f64: Path,
}

impl Names {
    fn new(attrs: &[Attribute]) -> Result<Self> {
        let site = Span::mixed_site();
        let mut krate: Path = parse_quote_spanned!(site=> ::sam_runtime);
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("aux")) {
            attr.parse_nested_meta(|meta| {
                if !meta.path.is_ident("crate") {
                    return Err(meta.error("expected `#[aux(crate = ::path)]`"));
                }
                krate = meta.value()?.call(Path::parse_mod_style)?;
                Ok(())
            })?;
        }
        Ok(Self {
            candle: parse_quote_spanned!(site=> #krate::__private::candle_core),
            result: parse_quote_spanned!(site=> ::core::result::Result),
            vec: parse_quote_spanned!(site=> ::std::vec::Vec),
            f64: parse_quote_spanned!(site=> ::core::primitive::f64),
            krate,
        })
    }
}

/// A bound on each type parameter, as in the standard library's derives.
fn bounded(generics: &Generics, bound: &Path) -> Generics {
    let mut generics = generics.clone();
    for param in generics.type_params_mut() {
        param.colon_token.get_or_insert_with(<Token![:]>::default);
        param.bounds.push(parse_quote!(#bound));
    }
    generics
}

fn members(fields: &Fields) -> Vec<Member> {
    let member = |(i, field): (usize, &Field)| match &field.ident {
        Some(name) => Member::Named(name.clone()),
        None => Member::Unnamed(Index { index: u32::try_from(i).unwrap_or(u32::MAX), span: Span::mixed_site() }),
    };
    fields.iter().enumerate().map(member).collect()
}

/// `of`: the path of the struct or variant.
fn arm(of: &TokenStream, fields: &Fields, traits: &[&Trait]) -> TokenStream {
    let (members, values) = (members(fields), locals("__sam_", fields));
    let detached = calls(|of| of.detached, fields, traits, &values);
    quote!(#of { #(#members: #values),* } => #of { #(#members: #detached),* },)
}

fn join(fields: &Fields, traits: &[&Trait], Names { result, vec, .. }: &Names) -> TokenStream {
    let (members, columns, values) = (members(fields), locals("__sam_", fields), locals("__sam_value_", fields));
    let joined = calls(|_| "join_shards", fields, traits, &columns);
    let share = if columns.is_empty() { quote!(_) } else { quote!(__sam_share) };
    quote! {
        #(let mut #columns = #vec::new();)*
        for (#share, __sam_part) in __sam_parts {
            let Self { #(#members: #values),* } = __sam_part;
            #(#vec::push(&mut #columns, (__sam_share, #values));)*
        }
        #result::Ok(Self { #(#members: #joined),* })
    }
}

/// Calls the method of each field's type. A missing implementation is reported at the type.
fn calls(method: fn(&Trait) -> &str, fields: &Fields, traits: &[&Trait], values: &[Ident]) -> Vec<TokenStream> {
    let call = |((field, of), value): ((&Field, &&Trait), &Ident)| {
        let (ty, at) = (&field.ty, field.ty.span().resolved_at(Span::mixed_site()));
        let (of, method) = (&of.path, Ident::new(method(of), at));
        // `A + B` needs parentheses before `as`.
        let ty = if let Type::TraitObject(ty) = ty { quote_spanned!(at=> (#ty)) } else { ty.to_token_stream() };
        quote_spanned!(at=> <#ty as #of>::#method(#value)?)
    };
    fields.iter().zip(traits).zip(values).map(call).collect()
}

fn locals(prefix: &str, fields: &Fields) -> Vec<Ident> {
    (0..fields.len()).map(|i| format_ident!("{prefix}{i}", span = Span::mixed_site())).collect()
}
