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

use crate::errors::Errors;

/// Every key and how it is written: what the error messages teach.
const FORMS: [(&str, &str); 17] = [
    ("rho", "`rho = 0.05`"),
    ("p", "`p = 2` or `p = inf`"),
    ("adaptive", "`adaptive` or `adaptive = 0.01`"),
    ("unnormalised", "`unnormalised`"),
    ("gsam", "`gsam = 0.4`"),
    ("wsam", "`wsam = 0.9`"),
    ("stable", "`stable`"),
    ("second_order", "`second_order`"),
    ("vars", "`vars = model.vars()`"),
    ("replay", "`replay(rng)`"),
    ("shards", "`shards(x, y; m = 32)`"),
    ("parts", "`parts(x, y; m = 32)`"),
    ("hardest", "`hardest(x, y; k = 32)`"),
    ("sharpest", "`sharpest(x, y; k = 64)`"),
    ("plain", "`plain = plain_loss`"),
    ("with", "`with = sam`"),
    ("crate", "`crate = ::sam_runtime`"),
];

const WITH: &str = "`with` takes the name of an argument: add an argument `sam: &Sam` and write `with = sam`";

/// What one may have meant by a key that is none, and the key that does it.
const NEAR: [(&str, &str); 10] = [
    ("eta", "adaptive"),
    ("alpha", "gsam"),
    ("gamma", "wsam"),
    ("radius", "rho"),
    ("m", "shards"),
    ("k", "hardest"),
    ("reduction", "shards"),
    ("weights", "shards"),
    ("unnormalized", "unnormalised"),
    ("sam", "with"),
];

#[derive(Default)]
pub(crate) struct Args {
    pub(crate) rho: Option<Keyed<Expr>>,
    pub(crate) p: Option<Keyed<Expr>>,
    pub(crate) adaptive: Option<Keyed<Option<Expr>>>,
    pub(crate) unnormalised: Option<Keyed<()>>,
    pub(crate) combination: Option<Keyed<Combination>>,
    pub(crate) vars: Option<Keyed<Expr>>,
    pub(crate) replay: Option<Keyed<Vec<Ident>>>,
    pub(crate) batch: Option<Keyed<Batch>>,
    pub(crate) plain: Option<Keyed<Ident>>,
    pub(crate) with: Option<Keyed<Ident>>,
    pub(crate) krate: Option<Keyed<Path>>,
    /// What could not be read; reported together with all else that is wrong.
    pub(crate) errors: Errors,
}

/// A value and the key that it was given for.
pub(crate) type Keyed<T> = (Ident, T);

/// What the two gradients come to, other than the second.
pub(crate) enum Combination {
    Gsam(Expr),
    Wsam(Expr),
    Stable,
    SecondOrder,
}

/// `shards(names; m = EXPR)`, and the other keys that are about the examples of a batch.
pub(crate) struct Batch {
    pub(crate) kind: Kind,
    pub(crate) names: Vec<Ident>,
    pub(crate) size: Expr,
    pub(crate) weighting: Weighting,
}

/// How the losses and gradients of the pieces of a batch are added up.
pub(crate) enum Weighting {
    /// Averaged over the examples.
    Mean,
    /// `reduction = sum`: the loss is a sum over examples.
    Sum,
    /// `weights = EXPR`: a weighted mean over the examples.
    Weights(Expr),
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Shards,
    Parts,
    Hardest,
    Sharpest,
}

impl Kind {
    fn of(key: &Ident) -> Option<Self> {
        Some(match key.to_string().as_str() {
            "shards" => Self::Shards,
            "parts" => Self::Parts,
            "hardest" => Self::Hardest,
            "sharpest" => Self::Sharpest,
            _ => return None,
        })
    }

    /// The name of its number.
    pub(crate) fn size(self) -> &'static str {
        match self {
            Self::Shards | Self::Parts => "m",
            Self::Hardest | Self::Sharpest => "k",
        }
    }

    /// Whether it goes through the whole batch, piece by piece.
    fn goes_through_all(self) -> bool {
        matches!(self, Self::Shards | Self::Parts)
    }
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
            ("unnormalised", Value::Nothing) => set(&mut self.unnormalised, key, ()),
            ("gsam", Value::Is(expr)) => set(&mut self.combination, key, Combination::Gsam(expr)),
            ("wsam", Value::Is(expr)) => set(&mut self.combination, key, Combination::Wsam(expr)),
            ("stable", Value::Nothing) => set(&mut self.combination, key, Combination::Stable),
            ("second_order", Value::Nothing) => set(&mut self.combination, key, Combination::SecondOrder),
            ("vars", Value::Is(expr)) => set(&mut self.vars, key, expr),
            ("replay", Value::List(list)) => set(&mut self.replay, key, read_list(names, key, list)?),
            ("plain", Value::Is(expr)) => set(&mut self.plain, key, name(key, &expr)?),
            ("with", Value::Is(expr)) => match path(&expr).and_then(Path::get_ident) {
                Some(name) => set(&mut self.with, key, name.clone()),
                None => Err(Error::new_spanned(expr, WITH)),
            },
            ("crate", Value::Is(expr)) => match path(&expr) {
                Some(path) => set(&mut self.krate, key, path.clone()),
                None => Err(misspelt(key, expr)),
            },
            (_, Value::List(list)) if let Some(kind) = Kind::of(key) => {
                let (mut batch, rest) = read_list(|input: ParseStream<'_>| batch(kind, input), key, list)?;
                batch.weighting = (|input: ParseStream<'_>| weighting(key, kind, input)).parse2(rest)?;
                set(&mut self.batch, key, batch)
            }
            _ => Err(misspelt(key, key)),
        }
    }
}

fn set<T>(slot: &mut Option<Keyed<T>>, key: &Ident, value: T) -> Result<()> {
    match slot {
        Some((known, _)) if known == key => {
            return Err(Error::new_spanned(key, format!("`{key}` is given twice: keep one")));
        }
        Some((known, _)) => {
            return Err(Error::new_spanned(key, format!("`{key}` and `{known}` cannot be used together: keep one")));
        }
        None => {}
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

/// The names and the size. What may follow stays to be read.
fn batch(kind: Kind, input: ParseStream<'_>) -> Result<(Batch, TokenStream)> {
    let names = names(input)?;
    input.parse::<Token![;]>()?;
    if input.parse::<Ident>()? != kind.size() {
        return Err(input.error("another name"));
    }
    input.parse::<Token![=]>()?;
    let size = input.parse()?;
    if !input.is_empty() {
        input.parse::<Token![,]>()?;
    }
    Ok((Batch { kind, names, size, weighting: Weighting::Mean }, input.parse()?))
}

/// `reduction = sum` or `weights = EXPR`, after the size of `key`.
fn weighting(key: &Ident, kind: Kind, input: ParseStream<'_>) -> Result<Weighting> {
    let mut found: Option<(Ident, Weighting)> = None;
    while !input.is_empty() {
        let option = input.call(Ident::parse_any)?;
        let fault = |why: String| Err(Error::new_spanned(&option, why));
        let name = option.to_string();
        let is_known = matches!(&*name, "reduction" | "weights");
        if !kind.goes_through_all() {
            return fault(if is_known {
                format!("`{option}` is for `shards` and `parts`: `{key}` averages over its examples")
            } else {
                format!("unknown option `{option}` of `{key}`: there is only `{}`", kind.size())
            });
        }
        if !is_known {
            let forms = "expected `reduction = sum` or `weights = EXPR`";
            return fault(format!("unknown option `{option}` of `{key}`: {forms}"));
        }
        match &found {
            Some((known, _)) if *known == option => return fault(format!("`{option}` is given twice: keep one")),
            Some((known, _)) => {
                return fault(format!("`{option}` and `{known}` cannot be used together: keep one"));
            }
            None => {}
        }
        if input.parse::<Option<Token![=]>>()?.is_none() || input.is_empty() || input.peek(Token![,]) {
            let form = if name == "weights" { "`weights = EXPR`" } else { "`reduction = sum` or `reduction = mean`" };
            return fault(format!("`{option}` is written {form}"));
        }
        let value: Expr = input.parse()?;
        let weighting = match (&*name, path(&value).and_then(Path::get_ident).map(Ident::to_string).as_deref()) {
            ("weights", _) => Weighting::Weights(value),
            (_, Some("sum")) => Weighting::Sum,
            (_, Some("mean")) => Weighting::Mean,
            _ => return Err(Error::new_spanned(value, "`reduction` is `sum` or `mean`")),
        };
        found = Some((option, weighting));
        if !input.is_empty() && input.parse::<Option<Token![,]>>()?.is_none() {
            return Err(input.error("expected `,`"));
        }
    }
    Ok(found.map_or(Weighting::Mean, |(_, weighting)| weighting))
}

fn read_list<T>(read: impl Fn(ParseStream<'_>) -> Result<T>, key: &Ident, list: TokenStream) -> Result<T> {
    let at = if list.is_empty() { key.to_token_stream() } else { list.clone() };
    read.parse2(list).map_err(|_| misspelt(key, at))
}

fn misspelt(key: &Ident, at: impl ToTokens) -> Error {
    let message = match form(&key.to_string()) {
        Some(form) => format!("`{key}` is written {form}"),
        None => match NEAR.iter().find(|(near, _)| key == near).and_then(|(_, meant)| form(meant)) {
            Some(form) => format!("unknown key `{key}`: write {form}"),
            None => format!("unknown key `{key}`: expected {}", keys()),
        },
    };
    Error::new_spanned(at, message)
}

fn form(key: &str) -> Option<&'static str> {
    FORMS.iter().find(|(known, _)| *known == key).map(|(_, form)| *form)
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
