//! What is refused, and in which words. What passes raises no more questions.

use std::mem;

use proc_macro2::TokenTree;
use syn::{
    Expr, FnArg, Ident, Lit, Path, Receiver, ReceiverKind, ReturnType, Type, TypeGroup, TypeParen, UnOp,
    ext::IdentExt as _,
};

use crate::{
    args::{Args, Batch, Combination},
    errors::Errors,
    function::{Binding, By, Item},
    optimizer_step::{self, NamesIn},
};

/// A function that can be rewritten, and what the attribute says of it.
pub(crate) struct Loss {
    pub(crate) args: Args,
    pub(crate) item: Item,
    pub(crate) arguments: Vec<Argument>,
}

pub(crate) struct Argument {
    pub(crate) binding: Binding,
    pub(crate) role: Option<Role>,
}

/// The key that names an argument.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Role {
    Replay,
    Batch,
    With,
}

/// Looks at everything before it gives up, so that all that is wrong is reported at once.
pub(crate) fn check(mut args: Args, item: syn::Result<Item>) -> syn::Result<Loss> {
    let mut errors = mem::take(&mut args.errors);
    check_values(&args, &mut errors);
    let item = match item {
        Ok(item) => item,
        Err(error) => return errors.and(Err(error)),
    };
    check_function(&item, &mut errors);
    optimizer_step::check(&item, &mut errors);
    if let Some((_, name)) = &args.plain
        && *name == item.sig.ident
    {
        errors.refuse(name, format!("`{name}` is the loss itself: give the plain function another name"));
    }
    let arguments = give_roles(&args, &item, &mut errors);
    errors.and(Ok(Loss { args, item, arguments }))
}

fn check_values(args: &Args, errors: &mut Errors) {
    if let Some((_, rho)) = &args.rho {
        check_number(errors, rho, 0.0, "`rho` is a radius: expected a number of at least 0");
    }
    if let Some((_, p)) = &args.p {
        check_number(errors, p, 1.0, "`p` is a norm: expected a number of at least 1, or `inf`");
    }
    if let Some((_, Some(eta))) = &args.adaptive {
        check_number(errors, eta, 0.0, "`adaptive` takes a number of at least 0, or no value");
    }
    match &args.combination {
        Some((_, Combination::Gsam(alpha))) => {
            check_number(errors, alpha, 0.0, "`gsam` takes α: expected a number of at least 0");
        }
        Some((_, Combination::Wsam(gamma))) if literal(gamma).is_some_and(|gamma| !(0.0..1.0).contains(&gamma)) => {
            errors.refuse(gamma, "`wsam` takes γ: expected a number of at least 0 and below 1");
        }
        Some((key, Combination::SecondOrder)) => {
            let p = args.p.as_ref().map(|(key, _)| key);
            let adaptive = args.adaptive.as_ref().map(|(key, _)| key);
            let unnormalised = args.unnormalised.as_ref().map(|(key, ())| key);
            for other in [p, adaptive, unnormalised].into_iter().flatten() {
                errors.refuse(other, format!("`{key}` is for the plain ball: leave out `{other}`"));
            }
        }
        _ => {}
    }
    if let (Some((key, ())), Some((p, _))) = (&args.unnormalised, &args.p) {
        errors.refuse(p, format!("`{key}` has no norm: leave out `{p}`"));
    }
    if let Some((key, batch)) = &args.batch {
        let size = batch.kind.size();
        let why = format!("`{size}` of `{key}` is a number of examples: expected an integer of at least 1");
        check_number(errors, &batch.size, 1.0, &why);
    }
    if let Some((_, path)) = &args.krate
        && !is_absolute(path)
    {
        errors.refuse(path, "`crate` must be an absolute path, like `::sam_runtime`");
    }
    if let Some((_, sam)) = &args.with {
        let rho = args.rho.as_ref().map(|(key, _)| key);
        let p = args.p.as_ref().map(|(key, _)| key);
        let adaptive = args.adaptive.as_ref().map(|(key, _)| key);
        let unnormalised = args.unnormalised.as_ref().map(|(key, ())| key);
        let combination = args.combination.as_ref().map(|(key, _)| key);
        let vars = args.vars.as_ref().map(|(key, _)| key);
        for key in [rho, p, adaptive, unnormalised, combination, vars].into_iter().flatten() {
            errors.refuse(key, format!("`{key}` and `with` cannot be used together: set it on `{sam}`"));
        }
    }
}

fn is_absolute(path: &Path) -> bool {
    let root = &path.segments[0].ident;
    path.leading_colon.is_some() || root == "crate" || root == "$crate"
}

fn check_function(Item { attrs, sig, body, .. }: &Item, errors: &mut Errors) {
    for attr in attrs.iter().filter(|attr| attr.path().segments.last().is_some_and(|last| last.ident == "sam")) {
        errors.refuse(attr, "`#[sam]` is given twice: put all keys into one");
    }
    if let Some(token) = &sig.constness {
        errors.refuse(token, "a loss cannot be `const`: write `fn`, tensors are computed at run time");
    }
    if let Some(token) = &sig.asyncness {
        errors.refuse(token, "a loss cannot be `async`: await first, and pass what comes of it as an argument");
    }
    if let Some(abi) = &sig.abi {
        errors.refuse(abi, "a loss cannot be `extern`: let the `extern` function call it");
    }
    if let Some(variadic) = &sig.variadic {
        errors.refuse(variadic.dots, "a loss cannot be variadic: take a slice");
    }
    if let Some(FnArg::Receiver(receiver)) = sig.inputs.first() {
        if !is_reference(receiver) {
            errors.refuse(receiver, "`self` cannot be moved into both passes: take `&self` or `&mut self`");
        } else if receiver.mutability.is_some() && !matches!(receiver_type(receiver), By::Ref) {
            errors.refuse(
                receiver,
                "`self` cannot point elsewhere in the second pass: take `&mut self`, and write `let mut this = &mut *self;` in the body",
            );
        }
    }
    let why = "a loss returns a `Result`: write `-> Result<Tensor>`";
    match &sig.output {
        ReturnType::Default => errors.refuse(&sig.ident, why),
        ReturnType::Type(_, ty) if is_no_result(ty) => errors.refuse(ty, why),
        ReturnType::Type(..) => {}
    }
    if let TokenTree::Punct(semicolon) = body {
        errors.refuse(semicolon, "a loss needs a body: put `#[sam]` on the implementation");
    }
}

fn is_reference(receiver: &Receiver) -> bool {
    receiver_type(receiver) != By::Value
}

fn receiver_type(receiver: &Receiver) -> By {
    match &receiver.kind {
        ReceiverKind::Reference(.., mutability) => mutability.map_or(By::Ref, |_| By::RefMut),
        ReceiverKind::Typed(_, ty) => By::of(ty),
        _ => By::Value,
    }
}

/// Whether one can see, not knowing what the names stand for, that this is no `Result`.
#[rustfmt::skip]
fn is_no_result(ty: &Type) -> bool {
    const OTHERS: [&str; 21] = [
        "Tensor", "Var", "Option", "Vec", "String", "bool", "char", "f32", "f64", "i8", "i16", "i32", "i64", "i128",
        "isize", "u8", "u16", "u32", "u64", "u128", "usize",
    ];
    match ty {
        Type::Path(ty) => ty.path.segments.last().is_some_and(|last| OTHERS.iter().any(|other| last.ident == other)),
        Type::Group(ty) => is_no_result(&ty.elem),
        Type::Paren(ty) => is_no_result(&ty.elem),
        Type::Macro(_) | Type::Verbatim(_) => false,
        _ => true,
    }
}

fn give_roles(args: &Args, item: &Item, errors: &mut Errors) -> Vec<Argument> {
    let mut arguments = Vec::<Argument>::new();
    for binding in item.bindings() {
        let name = &binding.name;
        if arguments.iter().any(|other| other.binding.name == *name) {
            errors.refuse(name, format!("`{name}` is bound twice: rename one"));
        }
        arguments.push(Argument { binding, role: None });
    }
    let replay = args.replay.iter().flat_map(|(_, names)| names).map(|name| (name, Role::Replay));
    let batch = args.batch.iter().flat_map(|(_, batch)| &batch.names).map(|name| (name, Role::Batch));
    let with = args.with.iter().map(|(_, name)| (name, Role::With));
    for (name, role) in replay.chain(batch).chain(with) {
        if let Err(why) = give_role(&mut arguments, name, role) {
            errors.refuse(name, why);
        }
    }
    if let Some((key, Batch { names, .. })) = &args.batch {
        for name in names {
            let unused = |argument: &Argument| {
                argument.is(name) && argument.role == Some(Role::Batch) && !argument.binding.in_body
            };
            if arguments.iter().any(unused) {
                errors.refuse(name, format!("`{key}` cannot split `{name}`: the body does not use `{name}`"));
            }
        }
    }
    arguments
}

impl Argument {
    fn is(&self, name: &Ident) -> bool {
        self.binding.name.unraw() == name.unraw()
    }
}

fn give_role(arguments: &mut [Argument], name: &Ident, role: Role) -> Result<(), String> {
    let Some(i) = arguments.iter().position(|argument| argument.is(name)) else {
        let names: Vec<_> = arguments.iter().map(|argument| format!("`{}`", argument.binding.name)).collect();
        return Err(match names.as_slice() {
            [] => format!("`{name}` is not an argument: there is none"),
            names => format!("`{name}` is not an argument: expected one of {}", names.join(", ")),
        });
    };
    let Argument { binding, role: slot } = &mut arguments[i];
    match (*slot, role, binding.by) {
        (Some(_), ..) => Err(format!("`{name}` is named twice: one key can have it, once")),
        (None, Role::Batch, By::RefMut | By::RefMutToOwned) => {
            Err(format!("`{name}` is behind `&mut` and cannot be split: take `{name}: &Tensor`"))
        }
        (None, Role::With, By::Value | By::RefToOwned | By::RefMutToOwned) => {
            Err(format!("`{name}` is not a reference: take `{name}: &Sam` or `{name}: &mut Sam`"))
        }
        (None, Role::With, By::RefMut) if binding.mutability.is_some() => {
            Err(format!("`{name}` cannot point elsewhere in the second pass: take `{name}: &mut Sam`, without `mut`"))
        }
        (None, Role::Replay, _) if let Some(handle) = handle(binding) => Err(format!(
            "`{name}` cannot be replayed: a clone of `{handle}` shares its state; take the state itself, \
             e.g. `{name}: &mut StdRng`"
        )),
        (None, ..) => {
            *slot = Some(role);
            Ok(())
        }
    }
}

/// What makes a clone of the argument share its state, if the type says so.
fn handle(binding: &Binding) -> Option<&'static str> {
    const HANDLES: [&str; 6] = ["Arc", "Rc", "Weak", "ThreadRng", "OsRng", "SysRng"];
    if !binding.is_whole {
        return None;
    }
    let mut state = &binding.ty;
    while let Type::Group(TypeGroup { elem, .. }) | Type::Paren(TypeParen { elem, .. }) = state {
        state = elem;
    }
    if let Type::Reference(reference) = state {
        state = &reference.elem;
        if By::of(state) != By::Value {
            return Some("&");
        }
    }
    HANDLES.into_iter().find(|handle| NamesIn::any(state, |name| name == handle))
}

/// Of a literal: any other expression is checked when it has a value.
fn check_number(errors: &mut Errors, expr: &Expr, least: f64, why: &str) {
    if literal(expr).is_some_and(|value| !(least..).contains(&value)) {
        errors.refuse(expr, why);
    }
}

/// The value of a literal; NaN, which no range contains, for one that is not a number.
fn literal(expr: &Expr) -> Option<f64> {
    match expr {
        Expr::Lit(expr) => match &expr.lit {
            Lit::Int(int) => int.base10_parse().ok(),
            Lit::Float(float) => float.base10_parse().ok(),
            _ => Some(f64::NAN),
        },
        Expr::Unary(expr) if matches!(expr.op, UnOp::Neg(_)) => literal(&expr.expr).map(|value| -value),
        Expr::Paren(expr) => literal(&expr.expr),
        Expr::Group(expr) => literal(&expr.expr),
        _ => None,
    }
}
