//! Validation: what is refused, and why. What passes can be expanded.

use std::mem;

use proc_macro2::TokenTree;
use syn::{
    Expr, FnArg, Ident, Lit, Path, Receiver, ReceiverKind, ReturnType, Type, TypeGroup, TypeParen, UnOp,
    ext::IdentExt as _,
};

use crate::{
    args::{Args, Ascent, Batch, Combination, Keyed},
    errors::Errors,
    function::{Binding, Function, PassBy},
    keys::{self, BatchKey},
    optimizer_step::{self, NamesIn},
};

/// A function that can be rewritten, with the arguments of its attribute.
pub(crate) struct Loss {
    pub(crate) args: Args,
    pub(crate) function: Function,
    pub(crate) arguments: Vec<Argument>,
}

pub(crate) struct Argument {
    pub(crate) binding: Binding,
    pub(crate) role: Option<Role>,
}

/// The kind of key that names an argument.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Role {
    Replay,
    Batch,
    With,
}

/// Collects all errors before it gives up, so that everything wrong is reported at once.
pub(crate) fn validate(mut args: Args, function: syn::Result<Function>) -> syn::Result<Loss> {
    let mut errors = mem::take(&mut args.errors);
    check_numbers(&args, &mut errors);
    check_combinations(&args, &mut errors);
    let function = match function {
        Ok(function) => function,
        Err(error) => return errors.and(Err(error)),
    };
    check_function(&function, &mut errors);
    optimizer_step::check(&function, &mut errors);
    if let Some(Keyed { value: name, .. }) = &args.plain
        && *name == function.sig.ident
    {
        errors.refuse(name, format!("`{name}` is the loss function itself: give the plain function another name"));
    }
    let arguments = assign_roles(&args, &function, &mut errors);
    errors.and(Ok(Loss { args, function, arguments }))
}

/// Checks literals. Any other expression is checked at run time.
fn check_numbers(args: &Args, errors: &mut Errors) {
    for (key, number) in args.numbers() {
        if let Some(range) = keys::find(key).and_then(|key| key.range())
            && literal(number).is_some_and(|value| !range.contains(value))
        {
            errors.refuse(number, format!("`{key}` must be {}", range.expected));
        }
    }
    if let Some(Keyed { key, value: batch }) = &args.batch
        && literal(&batch.size).is_some_and(|size| !(1.0..).contains(&size))
    {
        let size = batch.key.size();
        errors.refuse(&batch.size, format!("`{size}` of `{key}` must be an integer of at least 1"));
    }
}

fn check_combinations(args: &Args, errors: &mut Errors) {
    let p = args.p.as_ref().map(|p| &p.key);
    let adaptive = args.adaptive.as_ref().map(|adaptive| &adaptive.key);
    let unnormalized = args.unnormalized.as_ref().map(|unnormalized| &unnormalized.key);
    if let Some(Keyed { key, value: Combination::SecondOrder }) = &args.combination {
        for other in [p, adaptive, unnormalized].into_iter().flatten() {
            errors.refuse(other, format!("`{key}` supports only the Euclidean ball: remove `{other}`"));
        }
    }
    if let (Some(key), Some(p)) = (unnormalized, p) {
        errors.refuse(p, format!("`{key}` does not use a norm: remove `{p}`"));
    }
    if let Some(Keyed { key, value: ascent }) = &args.ascent {
        if args.all_reduce.is_none() && args.with.is_none() {
            errors.refuse(key, format!("`{key}` is for several ranks: add `all_reduce = world`"));
        }
        if let (Ascent::Synchronized, Some(Keyed { key: shards, value: batch })) = (ascent, &args.batch)
            && batch.key == BatchKey::Shards
        {
            errors.refuse(
                shards,
                format!("`{shards}` have a perturbation each, which cannot be synchronized: use `micro_batches`, or remove `{key}`"),
            );
        }
    }
    if let Some(Keyed { value: path, .. }) = &args.krate
        && !is_absolute(path)
    {
        errors.refuse(path, "`crate` must be an absolute path, e.g. `::sam_runtime`");
    }
    if let Some(Keyed { key: with, value: sam }) = &args.with {
        for key in args.given.iter().filter(|key| keys::find(key).is_some_and(|key| key.configures_sam)) {
            errors.refuse(key, format!("invalid combination: `{key}` and `{with}`: set `{key}` on `{sam}`"));
        }
    }
}

fn is_absolute(path: &Path) -> bool {
    let root = &path.segments[0].ident;
    path.leading_colon.is_some() || root == "crate" || root == "$crate"
}

fn check_function(Function { attrs, sig, body, .. }: &Function, errors: &mut Errors) {
    for attr in attrs.iter().filter(|attr| attr.path().segments.last().is_some_and(|last| last.ident == "sam")) {
        errors.refuse(attr, "`#[sam]` is given twice: put all keys into one");
    }
    if let Some(token) = &sig.constness {
        errors.refuse(token, "a loss function cannot be `const`: tensors are computed at run time");
    }
    if let Some(token) = &sig.asyncness {
        errors.refuse(token, "a loss function cannot be `async`: await first, and pass the result as an argument");
    }
    if let Some(abi) = &sig.abi {
        errors.refuse(abi, "a loss function cannot be `extern`: call it from the `extern` function");
    }
    if let Some(variadic) = &sig.variadic {
        errors.refuse(variadic.dots, "a loss function cannot be variadic: take a slice");
    }
    if let Some(FnArg::Receiver(receiver)) = sig.inputs.first() {
        if !is_reference(receiver) {
            errors.refuse(receiver, "`self` cannot be moved into both passes: take `&self` or `&mut self`");
        } else if receiver.mutability.is_some() && receiver_type(receiver) != PassBy::Ref {
            errors.refuse(
                receiver,
                "`self` cannot be reassigned, as the body runs twice: take `&mut self`, and write \
                 `let mut this = &mut *self;` in the body",
            );
        }
    }
    let why = "a loss function must return a `Result`: write `-> Result<Tensor>`";
    match &sig.output {
        ReturnType::Default => errors.refuse(&sig.ident, why),
        ReturnType::Type(_, ty) if is_not_a_result(ty) => errors.refuse(ty, why),
        ReturnType::Type(..) => {}
    }
    if let TokenTree::Punct(semicolon) = body {
        errors.refuse(semicolon, "a loss function needs a body: put `#[sam]` on the implementation");
    }
}

fn is_reference(receiver: &Receiver) -> bool {
    receiver_type(receiver) != PassBy::Value
}

fn receiver_type(receiver: &Receiver) -> PassBy {
    match &receiver.kind {
        ReceiverKind::Reference(.., mutability) => mutability.map_or(PassBy::Ref, |_| PassBy::RefMut),
        ReceiverKind::Typed(_, ty) => PassBy::of(ty),
        _ => PassBy::Value,
    }
}

/// Whether this is certainly not a `Result`, whatever its names stand for.
#[rustfmt::skip]
fn is_not_a_result(ty: &Type) -> bool {
    const OTHERS: [&str; 21] = [
        "Tensor", "Var", "Option", "Vec", "String", "bool", "char", "f32", "f64", "i8", "i16", "i32", "i64", "i128",
        "isize", "u8", "u16", "u32", "u64", "u128", "usize",
    ];
    match ty {
        Type::Path(ty) => ty.path.segments.last().is_some_and(|last| OTHERS.iter().any(|other| last.ident == other)),
        Type::Group(ty) => is_not_a_result(&ty.elem),
        Type::Paren(ty) => is_not_a_result(&ty.elem),
        Type::Macro(_) | Type::Verbatim(_) => false,
        _ => true,
    }
}

fn assign_roles(args: &Args, function: &Function, errors: &mut Errors) -> Vec<Argument> {
    let mut arguments = Vec::<Argument>::new();
    for binding in function.bindings() {
        let name = &binding.name;
        if arguments.iter().any(|other| other.binding.name == *name) {
            errors.refuse(name, format!("`{name}` is bound twice: rename one"));
        }
        arguments.push(Argument { binding, role: None });
    }
    let replay = args.replay.iter().flat_map(|replay| &replay.value).map(|name| (name, Role::Replay));
    let batch = args.batch.iter().flat_map(|batch| &batch.value.names).map(|name| (name, Role::Batch));
    let with = args.with.iter().map(|with| (&with.value, Role::With));
    for (name, role) in replay.chain(batch).chain(with) {
        if let Err(why) = assign_role(&mut arguments, name, role) {
            errors.refuse(name, why);
        }
    }
    if let Some(Keyed { key, value: Batch { names, .. } }) = &args.batch {
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

fn assign_role(arguments: &mut [Argument], name: &Ident, role: Role) -> Result<(), String> {
    let Some(i) = arguments.iter().position(|argument| argument.is(name)) else {
        let names: Vec<_> = arguments.iter().map(|argument| format!("`{}`", argument.binding.name)).collect();
        return Err(match names.as_slice() {
            [] => format!("`{name}` is not an argument: the function has no arguments"),
            names => format!("`{name}` is not an argument: expected one of {}", names.join(", ")),
        });
    };
    let Argument { binding, role: slot } = &mut arguments[i];
    match (*slot, role, binding.pass_by) {
        (Some(_), ..) => Err(format!("`{name}` is listed more than once")),
        (None, Role::Batch, PassBy::RefMut | PassBy::RefMutToOwned) => {
            Err(format!("`{name}` is behind `&mut` and cannot be split: take `{name}: &Tensor`"))
        }
        (None, Role::With, PassBy::Value | PassBy::RefToOwned | PassBy::RefMutToOwned) => {
            Err(format!("`{name}` is not a reference: take `{name}: &Sam` or `{name}: &mut Sam`"))
        }
        (None, Role::With, PassBy::RefMut) if binding.mutability.is_some() => Err(format!(
            "`{name}` cannot be reassigned, as the body runs twice: take `{name}: &mut Sam`, without `mut`"
        )),
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

/// The type, if the argument's names one, whose clones share their state.
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
        if PassBy::of(state) != PassBy::Value {
            return Some("&");
        }
    }
    HANDLES.into_iter().find(|handle| NamesIn::any(state, |name| name == handle))
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
