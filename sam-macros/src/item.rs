//! What the function says: its signature, the names that it binds and which of them its body uses.

use std::{collections::HashSet, mem};

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};
use syn::{
    AttrStyle, Attribute, FnArg, Ident, Pat, PatIdent, PatOr, PatType, Result, Signature, Token, Type, Visibility,
    ext::IdentExt as _,
    parse::{Parse, ParseStream, Parser as _},
    visit::{self, Visit},
};

pub(crate) struct Item {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    /// As it was typed: one that does not parse yet is for the compiler to report. A semicolon, if there is none.
    pub(crate) body: TokenTree,
}

/// A name that a pattern of the signature binds.
pub(crate) struct Binding {
    /// Those of the argument, which go with the name: a `cfg`, a lint level.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) name: Ident,
    pub(crate) mutability: Option<Token![mut]>,
    pub(crate) by: By,
    /// That of the whole argument.
    pub(crate) ty: Type,
    pub(crate) in_body: bool,
}

/// How a name is bound, as far as one can see without knowing types.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum By {
    Value,
    Ref,
    RefMut,
}

impl Parse for Item {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        expect_function(input)?;
        let sig = input.parse()?;
        let body = match input.parse()? {
            TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                TokenTree::Group(lift_attributes(body, &mut attrs)?)
            }
            body => body,
        };
        Ok(Self { attrs, vis, sig, body })
    }
}

fn expect_function(input: ParseStream<'_>) -> Result<()> {
    let ahead = input.fork();
    ahead.parse::<Option<Token![const]>>()?;
    ahead.parse::<Option<Token![async]>>()?;
    ahead.parse::<Option<Token![unsafe]>>()?;
    ahead.parse::<Option<syn::Abi>>()?;
    if ahead.peek(Token![fn]) {
        return Ok(());
    }
    Err(input.error("expected a function: `#[sam]` goes above the `fn` that returns the loss"))
}

/// Turns `#![..]` at the head of the body into `#[..]` above the function, where it means the same.
fn lift_attributes(body: Group, attrs: &mut Vec<Attribute>) -> Result<Group> {
    let split = |body: ParseStream<'_>| Ok((body.call(Attribute::parse_inner)?, body.parse()?));
    let (inner, rest): (_, TokenStream) = split.parse2(body.stream())?;
    if inner.is_empty() {
        return Ok(body);
    }
    attrs.extend(inner.into_iter().map(|attr| Attribute { style: AttrStyle::Outer, ..attr }));
    let mut lifted = Group::new(Delimiter::Brace, rest);
    lifted.set_span(body.span());
    Ok(lifted)
}

impl Item {
    /// The names that the arguments bind, in written order; `self` is not one of them.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let mut variables = HashSet::new();
        collect_variables(self.body.clone().into(), &mut variables);
        let mut bindings = Vec::new();
        for arg in &self.sig.inputs {
            if let FnArg::Typed(arg) = arg {
                // What a pattern takes apart has a type that only the compiler knows.
                let by = if matches!(*arg.pat, Pat::Ident(_)) { By::of(&arg.ty) } else { By::Value };
                let mut names = Names { arg, by, variables: &variables, bindings: &mut bindings };
                names.visit_pat(&arg.pat);
            }
        }
        bindings
    }
}

impl By {
    pub(crate) fn of(ty: &Type) -> Self {
        match ty {
            Type::Reference(ty) if ty.mutability.is_some() => Self::RefMut,
            Type::Reference(_) => Self::Ref,
            // A macro's `$ty` comes in an invisible group.
            Type::Group(ty) => Self::of(&ty.elem),
            Type::Paren(ty) => Self::of(&ty.elem),
            _ => Self::Value,
        }
    }
}

struct Names<'a> {
    arg: &'a PatType,
    by: By,
    variables: &'a HashSet<Ident>,
    bindings: &'a mut Vec<Binding>,
}

impl<'a> Visit<'a> for Names<'a> {
    fn visit_pat_ident(&mut self, pat: &'a PatIdent) {
        // Only the outermost name has the argument's type.
        let by = mem::replace(&mut self.by, By::Value);
        self.bindings.push(Binding {
            attrs: self.arg.attrs.clone(),
            name: pat.ident.clone(),
            mutability: pat.mutability.filter(|_| pat.by_ref.is_none()),
            by: match (&pat.by_ref, &pat.mutability) {
                (Some(_), Some(_)) => By::RefMut,
                (Some(_), None) => By::Ref,
                (None, _) => by,
            },
            ty: (*self.arg.ty).clone(),
            in_body: self.variables.contains(&pat.ident.unraw()),
        });
        visit::visit_pat_ident(self, pat);
    }

    /// All alternatives bind the same names.
    fn visit_pat_or(&mut self, pat: &'a PatOr) {
        self.visit_pat(&pat.cases[0]);
    }
}

/// The identifiers that can be a variable: `.name` is a field and `name:` labels one.
fn collect_variables(tokens: TokenStream, variables: &mut HashSet<Ident>) {
    let mut tokens = tokens.into_iter().peekable();
    let mut after_dot = false;
    while let Some(token) = tokens.next() {
        match &token {
            TokenTree::Group(group) => collect_variables(group.stream(), variables),
            TokenTree::Ident(name) if !after_dot && !tokens.peek().is_some_and(is_colon) => {
                variables.insert(name.unraw());
            }
            _ => {}
        }
        // The second dot of `..name` ends a range, it does not begin a field.
        after_dot = !after_dot && matches!(&token, TokenTree::Punct(dot) if dot.as_char() == '.');
    }
}

fn is_colon(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(colon)
        if colon.as_char() == ':' && colon.spacing() == Spacing::Alone)
}
