//! What the attribute says: keys and values, read and not yet judged.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Error, Expr, Ident, Path, Result, Token,
    ext::IdentExt as _,
    parenthesized,
    parse::{Parse, ParseStream, Parser as _},
    token::Paren,
};

use crate::valid::Errors;

/// Every key and how it is written: what the error messages teach.
const FORMS: [(&str, &str); 9] = [
    ("rho", "`rho = 0.05`"),
    ("p", "`p = 2` or `p = inf`"),
    ("adaptive", "`adaptive` or `adaptive = 0.01`"),
    ("vars", "`vars = model.vars()`"),
    ("replay", "`replay(rng)`"),
    ("shards", "`shards(x, y; m = 32)`"),
    ("plain", "`plain = plain_loss`"),
    ("with", "`with = sam`"),
    ("crate", "`crate = ::sam_runtime`"),
];

#[derive(Default)]
pub(crate) struct Args {
    pub(crate) rho: Option<Keyed<Expr>>,
    pub(crate) p: Option<Keyed<Expr>>,
    pub(crate) adaptive: Option<Keyed<Option<Expr>>>,
    pub(crate) vars: Option<Keyed<Expr>>,
    pub(crate) replay: Option<Keyed<Vec<Ident>>>,
    pub(crate) shards: Option<Keyed<Shards>>,
    pub(crate) plain: Option<Keyed<Ident>>,
    pub(crate) with: Option<Keyed<Ident>>,
    pub(crate) krate: Option<Keyed<Path>>,
    /// What could not be read; reported together with all else that is wrong.
    pub(crate) errors: Errors,
}

/// A value and the key that it was given for.
pub(crate) type Keyed<T> = (Ident, T);

/// `shards(names; m = EXPR)`
pub(crate) struct Shards {
    pub(crate) names: Vec<Ident>,
    pub(crate) m: Expr,
}

impl Args {
    pub(crate) fn read(tokens: TokenStream) -> Self {
        let mut args = Self::default();
        let all = |input: ParseStream<'_>| {
            while !input.is_empty() {
                if let Err(error) = args.read_one(input) {
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

    fn read_one(&mut self, input: ParseStream<'_>) -> Result<()> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error(format!("expected {}", keys())));
        }
        let key = input.call(Ident::parse_any)?;
        let key = &key;
        let value = input.parse()?;
        if !input.is_empty() && !input.peek(Token![,]) {
            return Err(match value {
                Value::Nothing if !input.peek(Ident::peek_any) => misspelt(key, input.parse::<TokenTree>()?),
                _ => input.error("expected `,`"),
            });
        }
        match (key.to_string().as_str(), value) {
            ("rho", Value::Is(expr)) => set(&mut self.rho, key, expr),
            ("p", Value::Is(expr)) => set(&mut self.p, key, expr),
            ("adaptive", Value::Nothing) => set(&mut self.adaptive, key, None),
            ("adaptive", Value::Is(expr)) => set(&mut self.adaptive, key, Some(expr)),
            ("vars", Value::Is(expr)) => set(&mut self.vars, key, expr),
            ("replay", Value::List(list)) => set(&mut self.replay, key, read_list(names, key, list)?),
            ("shards", Value::List(list)) => set(&mut self.shards, key, read_list(shards, key, list)?),
            ("plain", Value::Is(expr)) => set(&mut self.plain, key, name(key, &expr)?),
            ("with", Value::Is(expr)) => set(&mut self.with, key, name(key, &expr)?),
            ("crate", Value::Is(expr)) => match path(&expr) {
                Some(path) => set(&mut self.krate, key, path.clone()),
                None => Err(misspelt(key, expr)),
            },
            _ => Err(misspelt(key, key)),
        }
    }
}

fn set<T>(slot: &mut Option<Keyed<T>>, key: &Ident, value: T) -> Result<()> {
    if slot.is_some() {
        return Err(Error::new_spanned(key, format!("`{key}` is given twice: keep one")));
    }
    *slot = Some((key.clone(), value));
    Ok(())
}

/// What can follow a key, whichever key it is.
enum Value {
    Nothing,
    Is(Expr),
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
        Ok(Self::Is(input.parse()?))
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

fn name(key: &Ident, expr: &Expr) -> Result<Ident> {
    let name = path(expr).and_then(Path::get_ident);
    name.cloned().ok_or_else(|| misspelt(key, expr))
}

fn names(input: ParseStream<'_>) -> Result<Vec<Ident>> {
    let mut names = vec![input.call(Ident::parse_any)?];
    while input.parse::<Option<Token![,]>>()?.is_some() && input.peek(Ident::peek_any) {
        names.push(input.call(Ident::parse_any)?);
    }
    Ok(names)
}

fn shards(input: ParseStream<'_>) -> Result<Shards> {
    syn::custom_keyword!(m);
    let names = names(input)?;
    input.parse::<Token![;]>()?;
    input.parse::<m>()?;
    input.parse::<Token![=]>()?;
    Ok(Shards { names, m: input.parse()? })
}

fn read_list<T>(read: fn(ParseStream<'_>) -> Result<T>, key: &Ident, list: TokenStream) -> Result<T> {
    let at = if list.is_empty() { key.to_token_stream() } else { list.clone() };
    read.parse2(list).map_err(|_| misspelt(key, at))
}

fn misspelt(key: &Ident, at: impl ToTokens) -> Error {
    let message = match FORMS.iter().find(|(known, _)| key == known) {
        Some((_, form)) => format!("`{key}` is written {form}"),
        None => format!("unknown key `{key}`: expected {}", keys()),
    };
    Error::new_spanned(at, message)
}

fn keys() -> String {
    format!("one of {}", FORMS.map(|(key, _)| format!("`{key}`")).join(", "))
}

fn skip_to_comma(input: ParseStream<'_>) -> Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<TokenTree>()?;
    }
    Ok(())
}
