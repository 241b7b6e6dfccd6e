//! Parsing: the keys and values of the attribute, not yet validated.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Error, Expr, Ident, Path, Result, Token,
    ext::IdentExt as _,
    parenthesized,
    parse::{Parse, ParseStream, Parser as _},
    token::Paren,
};

use crate::{
    errors::Errors,
    keys::{self, BatchKey, Form},
};

#[derive(Default)]
pub(crate) struct Args {
    pub(crate) rho: Option<Keyed<Expr>>,
    pub(crate) p: Option<Keyed<Expr>>,
    pub(crate) adaptive: Option<Keyed<Option<Expr>>>,
    pub(crate) unnormalized: Option<Keyed<()>>,
    pub(crate) combination: Option<Keyed<Combination>>,
    pub(crate) vars: Option<Keyed<Expr>>,
    pub(crate) buffers: Option<Keyed<Expr>>,
    pub(crate) all_reduce: Option<Keyed<Expr>>,
    pub(crate) ascent: Option<Keyed<Ascent>>,
    pub(crate) replay: Option<Keyed<Vec<Ident>>>,
    pub(crate) batch: Option<Keyed<Batch>>,
    pub(crate) plain: Option<Keyed<Ident>>,
    pub(crate) with: Option<Keyed<Ident>>,
    pub(crate) krate: Option<Keyed<Path>>,
    /// All of the above, as written.
    pub(crate) given: Vec<Ident>,
    /// What could not be parsed, to be reported together with what validation finds.
    pub(crate) errors: Errors,
}

/// A value and the key that it was given for.
pub(crate) struct Keyed<T> {
    pub(crate) key: Ident,
    pub(crate) value: T,
}

/// How the gradients at w and at w + ε are combined, other than by taking the second.
pub(crate) enum Combination {
    Gsam(Expr),
    Wsam(Expr),
    Stable,
    SecondOrder,
}

/// Whose samples the perturbation is found on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Ascent {
    PerRank,
    Synchronized,
}

/// `shards(names; m = EXPR)`, and the other keys that split or select the samples of a batch.
pub(crate) struct Batch {
    pub(crate) key: BatchKey,
    pub(crate) names: Vec<Ident>,
    pub(crate) size: Expr,
    pub(crate) weighting: Weighting,
}

/// How the losses and gradients of the pieces of a batch are added up.
pub(crate) enum Weighting {
    /// Averaged over the samples.
    Mean,
    /// `reduction = sum`: the loss is a sum over samples.
    Sum,
    /// `weights = EXPR`: a weighted mean over the samples.
    Weights(Expr),
}

impl Args {
    pub(crate) fn parse(tokens: TokenStream) -> Self {
        let mut args = Self::default();
        let all = |input: ParseStream<'_>| {
            while !input.is_empty() {
                if let Err(error) = args.parse_key(input) {
                    args.errors.push(error);
                    skip_to_comma(input)?;
                }
                input.parse::<Option<Token![,]>>()?;
            }
            Ok(())
        };
        if let Err(error) = all.parse2(tokens) {
            args.errors.push(error);
        }
        args
    }

    fn parse_key(&mut self, input: ParseStream<'_>) -> Result<()> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error(format!("expected {}", keys::list())));
        }
        let key = &input.call(Ident::parse_any)?;
        // Also behind an unknown key, so that one mistake is one error.
        let value = input.parse()?;
        let Some(syntax) = keys::find(key) else {
            return Err(Error::new_spanned(key, keys::unknown(key)));
        };
        if !input.is_empty() && !input.peek(Token![,]) {
            return Err(match value {
                Value::Nothing if !input.peek(Ident::peek_any) => {
                    let token: TokenTree = input.parse()?;
                    Error::new_spanned(&token, syntax.unexpected(&token.to_string()))
                }
                _ => input.error("expected `,`"),
            });
        }
        let misuse = |at: &dyn ToTokens| Error::new_spanned(at, syntax.misuse(false));
        match (syntax.name, value) {
            ("rho", Value::Expr(expr)) => set(&mut self.rho, key, expr),
            ("p", Value::Expr(expr)) => set(&mut self.p, key, expr),
            ("adaptive", Value::Nothing) => set(&mut self.adaptive, key, None),
            ("adaptive", Value::Expr(expr)) => set(&mut self.adaptive, key, Some(expr)),
            ("unnormalized", Value::Nothing) => set(&mut self.unnormalized, key, ()),
            ("gsam", Value::Expr(expr)) => set(&mut self.combination, key, Combination::Gsam(expr)),
            ("wsam", Value::Expr(expr)) => set(&mut self.combination, key, Combination::Wsam(expr)),
            ("stable", Value::Nothing) => set(&mut self.combination, key, Combination::Stable),
            ("second_order", Value::Nothing) => set(&mut self.combination, key, Combination::SecondOrder),
            ("vars", Value::Expr(expr)) => set(&mut self.vars, key, expr),
            ("buffers", Value::Expr(expr)) => set(&mut self.buffers, key, expr),
            ("all_reduce", Value::Expr(expr)) => set(&mut self.all_reduce, key, expr),
            ("ascent", Value::Expr(expr)) => match name(&expr) {
                Some(name) if name == "synchronized" => set(&mut self.ascent, key, Ascent::Synchronized),
                Some(name) if name == "per_rank" => set(&mut self.ascent, key, Ascent::PerRank),
                _ => Err(misuse(&expr)),
            },
            ("replay", Value::List(list)) => set(&mut self.replay, key, parse_list(names, list, key, &misuse)?),
            ("plain", Value::Expr(expr)) => match name(&expr) {
                Some(name) => set(&mut self.plain, key, name.clone()),
                None => Err(misuse(&expr)),
            },
            ("with", Value::Expr(expr)) => match name(&expr) {
                Some(name) => set(&mut self.with, key, name.clone()),
                None => Err(misuse(&expr)),
            },
            ("crate", Value::Expr(expr)) => match path(&expr) {
                Some(path) => set(&mut self.krate, key, path.clone()),
                None => Err(misuse(&expr)),
            },
            (_, Value::List(list)) if let Form::Batch(batch_key) = syntax.form => {
                let (mut batch, options) =
                    parse_list(|input: ParseStream<'_>| batch(batch_key, input), list, key, &misuse)?;
                batch.weighting = (|input: ParseStream<'_>| weighting(key, batch_key, input)).parse2(options)?;
                set(&mut self.batch, key, batch)
            }
            (_, value) => Err(Error::new_spanned(key, syntax.misuse(matches!(value, Value::Nothing)))),
        }?;
        self.given.push(key.clone());
        Ok(())
    }

    /// The values that have to be numbers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (&Ident, &Expr)> {
        let adaptive = self.adaptive.iter().filter_map(|Keyed { key, value }| Some((key, value.as_ref()?)));
        let combination = self.combination.iter().filter_map(|Keyed { key, value }| match value {
            Combination::Gsam(number) | Combination::Wsam(number) => Some((key, number)),
            Combination::Stable | Combination::SecondOrder => None,
        });
        let always = self.rho.iter().chain(&self.p).map(|Keyed { key, value }| (key, value));
        always.chain(adaptive).chain(combination)
    }
}

fn set<T>(slot: &mut Option<Keyed<T>>, key: &Ident, value: T) -> Result<()> {
    match slot {
        Some(Keyed { key: known, .. }) if known == key => {
            return Err(Error::new_spanned(key, format!("`{key}` is given twice: keep one")));
        }
        Some(Keyed { key: known, .. }) => {
            return Err(Error::new_spanned(key, format!("invalid combination: `{key}` and `{known}`: keep one")));
        }
        None => {}
    }
    *slot = Some(Keyed { key: key.clone(), value });
    Ok(())
}

/// What can follow any key.
enum Value {
    Nothing,
    Expr(Expr),
    List(TokenStream),
}

impl Parse for Value {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if input.peek(Paren) {
            let list;
            parenthesized!(list in input);
            return Ok(Self::List(list.parse()?));
        }
        let Some(equals) = input.parse::<Option<Token![=]>>()? else {
            return Ok(Self::Nothing);
        };
        if input.is_empty() || input.peek(Token![,]) {
            return Err(Error::new_spanned(equals, "expected a value after `=`"));
        }
        Ok(Self::Expr(input.parse()?))
    }
}

/// The expression as a path, also when a macro has put it into an invisible group.
pub(crate) fn path(expr: &Expr) -> Option<&Path> {
    match expr {
        Expr::Path(path) if path.qself.is_none() => Some(&path.path),
        Expr::Group(group) => path(&group.expr),
        _ => None,
    }
}

fn name(expr: &Expr) -> Option<&Ident> {
    path(expr).and_then(Path::get_ident)
}

fn names(input: ParseStream<'_>) -> Result<Vec<Ident>> {
    let mut names = vec![input.call(Ident::parse_any)?];
    while input.parse::<Option<Token![,]>>()?.is_some() && input.peek(Ident::peek_any) {
        names.push(input.call(Ident::parse_any)?);
    }
    Ok(names)
}

/// The names and the size, and the options that follow, not yet parsed.
fn batch(key: BatchKey, input: ParseStream<'_>) -> Result<(Batch, TokenStream)> {
    let names = names(input)?;
    input.parse::<Token![;]>()?;
    if input.parse::<Ident>()? != key.size() {
        return Err(input.error("another name"));
    }
    input.parse::<Token![=]>()?;
    let size = input.parse()?;
    if !input.is_empty() {
        input.parse::<Token![,]>()?;
    }
    Ok((Batch { key, names, size, weighting: Weighting::Mean }, input.parse()?))
}

/// The options `reduction = sum` and `weights = EXPR`.
fn weighting(key: &Ident, batch_key: BatchKey, input: ParseStream<'_>) -> Result<Weighting> {
    let mut found: Option<Keyed<Weighting>> = None;
    while !input.is_empty() {
        let option = input.call(Ident::parse_any)?;
        let is_known = option == "reduction" || option == "weights";
        if !batch_key.uses_all_samples() {
            let why = if is_known {
                format!("`{key}` has no `{option}`: it averages over the samples that it selects")
            } else {
                format!("unknown option `{option}` of `{key}`: expected only `{}`", batch_key.size())
            };
            return Err(Error::new_spanned(option, why));
        }
        if !is_known {
            let why = format!("unknown option `{option}` of `{key}`: expected `reduction = sum` or `weights = EXPR`");
            return Err(Error::new_spanned(option, why));
        }
        if input.parse::<Option<Token![=]>>()?.is_none() || input.is_empty() || input.peek(Token![,]) {
            let values = if option == "weights" { ", e.g. `weights = [1.0, 0.5]`" } else { ": `sum` or `mean`" };
            return Err(Error::new_spanned(&option, format!("`{option}` needs a value{values}")));
        }
        let value: Expr = input.parse()?;
        let weighting = if option == "weights" {
            Weighting::Weights(value)
        } else {
            match name(&value) {
                Some(sum) if sum == "sum" => Weighting::Sum,
                Some(mean) if mean == "mean" => Weighting::Mean,
                _ => return Err(Error::new_spanned(value, "`reduction` must be `sum` or `mean`")),
            }
        };
        set(&mut found, &option, weighting)?;
        if !input.is_empty() && input.parse::<Option<Token![,]>>()?.is_none() {
            return Err(input.error("expected `,`"));
        }
    }
    Ok(found.map_or(Weighting::Mean, |found| found.value))
}

/// `misuse`: the error for a list that `parse` does not take.
fn parse_list<T>(
    parse: impl Fn(ParseStream<'_>) -> Result<T>,
    list: TokenStream,
    key: &Ident,
    misuse: &dyn Fn(&dyn ToTokens) -> Error,
) -> Result<T> {
    let at = if list.is_empty() { key.to_token_stream() } else { list.clone() };
    parse.parse2(list).map_err(|_| misuse(&at))
}

fn skip_to_comma(input: ParseStream<'_>) -> Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<TokenTree>()?;
    }
    Ok(())
}
