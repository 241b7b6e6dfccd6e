//! Parsing: the function's signature, the names that its arguments bind and which of them its body uses.

use std::{collections::HashSet, mem};

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};
use syn::{
    AttrStyle, Attribute, FnArg, Ident, Pat, PatIdent, PatOr, PatReference, PatType, Receiver, Result, Signature,
    Token, Type, Visibility,
    ext::IdentExt as _,
    parse::{Parse, ParseStream, Parser as _},
    visit::{self, Visit},
};

pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    /// Not parsed: the compiler reports what is wrong in it. A semicolon, if the function has no body.
    pub(crate) body: TokenTree,
}

/// A name that a pattern of the signature binds.
pub(crate) struct Binding {
    /// The argument's: a `cfg`, a lint level.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) name: Ident,
    pub(crate) mutability: Option<Token![mut]>,
    pub(crate) pass_by: PassBy,
    /// The type of the whole argument.
    pub(crate) ty: Type,
    /// Whether that is also the type of the name.
    pub(crate) is_whole: bool,
    /// Whether the body has a variable of this name.
    pub(crate) in_body: bool,
    /// Whether the body may use it where no token shows it: in a format string, or in an included file.
    pub(crate) hidden_in_body: bool,
}

/// How the function has what a name stands for, as far as its syntax tells.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum PassBy {
    /// The function owns what the name stands for.
    Value,
    /// Of type `&T`.
    Ref,
    /// Of type `&mut T`.
    RefMut,
    /// By `ref`: a reference to what the function owns.
    RefToOwned,
    /// By `ref mut`.
    RefMutToOwned,
}

impl Parse for Function {
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

/// Moves inner attributes of the body above the function, where they mean the same.
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

impl Function {
    /// The names that the arguments bind, in written order; `self` is not one of them.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let mut body = Body::default();
        body.collect(self.body.clone().into());
        let mut bindings = Vec::new();
        for arg in &self.sig.inputs {
            if let FnArg::Typed(arg) = arg {
                // Inside a pattern, only the compiler knows the types.
                let pass_by = if is_name(&arg.pat) { PassBy::of(&arg.ty) } else { PassBy::Value };
                let mut names = Names { arg, pass_by, behind_reference: false, body: &body, bindings: &mut bindings };
                names.visit_pat(&arg.pat);
            }
        }
        bindings
    }

    /// `mut self: &Self`.
    pub(crate) fn mutable_self(&self) -> Option<&Receiver> {
        match self.sig.inputs.first() {
            Some(FnArg::Receiver(receiver)) if receiver.mutability.is_some() => Some(receiver),
            _ => None,
        }
    }
}

fn is_name(pat: &Pat) -> bool {
    match pat {
        Pat::Ident(_) => true,
        Pat::Paren(pat) => is_name(&pat.pat),
        _ => false,
    }
}

impl Binding {
    pub(crate) fn is_used(&self) -> bool {
        self.in_body || self.hidden_in_body
    }
}

impl PassBy {
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
    pass_by: PassBy,
    behind_reference: bool,
    body: &'a Body,
    bindings: &'a mut Vec<Binding>,
}

impl<'a> Visit<'a> for Names<'a> {
    fn visit_pat_ident(&mut self, pat: &'a PatIdent) {
        // Only the outermost name has the argument's type.
        let pass_by = mem::replace(&mut self.pass_by, PassBy::Value);
        let name = pat.ident.unraw();
        self.bindings.push(Binding {
            attrs: self.arg.attrs.clone(),
            name: pat.ident.clone(),
            mutability: pat.mutability.filter(|_| pat.by_ref.is_none()),
            pass_by: match (&pat.by_ref, &pat.mutability, self.behind_reference) {
                (Some(_), Some(_), true) => PassBy::RefMut,
                (Some(_), Some(_), false) => PassBy::RefMutToOwned,
                (Some(_), None, true) => PassBy::Ref,
                (Some(_), None, false) => PassBy::RefToOwned,
                (None, ..) => pass_by,
            },
            ty: (*self.arg.ty).clone(),
            is_whole: is_name(&self.arg.pat),
            in_body: self.body.variables.contains(&name),
            hidden_in_body: self.body.includes || self.body.formatted.contains(&name.to_string()),
        });
        visit::visit_pat_ident(self, pat);
    }

    fn visit_pat_reference(&mut self, pat: &'a PatReference) {
        let outer = mem::replace(&mut self.behind_reference, true);
        visit::visit_pat_reference(self, pat);
        self.behind_reference = outer;
    }

    /// All alternatives bind the same names.
    fn visit_pat_or(&mut self, pat: &'a PatOr) {
        if let Some(first) = pat.cases.first() {
            self.visit_pat(first);
        }
    }
}

/// The names in a body, as far as tokens tell.
#[derive(Default)]
struct Body {
    /// The identifiers that can be a variable: `.name` is a field and `name:` labels one.
    variables: HashSet<Ident>,
    /// Those inside the braces of string literals.
    formatted: HashSet<String>,
    /// Whether there is an `include!`, which can have any name.
    includes: bool,
}

impl Body {
    fn collect(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        let mut after_dot = false;
        while let Some(token) = tokens.next() {
            match &token {
                TokenTree::Group(group) => self.collect(group.stream()),
                TokenTree::Ident(name) if !after_dot && !tokens.peek().is_some_and(is_colon) => {
                    self.includes |= name == "include" && tokens.peek().is_some_and(is_bang);
                    self.variables.insert(name.unraw());
                }
                TokenTree::Literal(literal) => self.formatted.extend(formatted(&literal.to_string())),
                _ => {}
            }
            // The second dot of `..name` ends a range, it does not begin a field.
            after_dot = !after_dot && matches!(&token, TokenTree::Punct(dot) if dot.as_char() == '.');
        }
    }
}

/// The names in `{name:width$}`, and other words between braces.
fn formatted(literal: &str) -> impl Iterator<Item = String> {
    let braced = literal.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or(rest));
    let words = braced.flat_map(|text| text.split(|c: char| c != '_' && !c.is_alphanumeric()));
    words.map(str::to_owned)
}

fn is_colon(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(colon)
        if colon.as_char() == ':' && colon.spacing() == Spacing::Alone)
}

fn is_bang(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(bang) if bang.as_char() == '!')
}
