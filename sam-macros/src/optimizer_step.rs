//! Optimizer steps inside a loss function.

use std::collections::HashSet;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{
    Generics, Ident, ParenthesizedGenericArguments, Path, Type, TypeParamBound, WherePredicate,
    visit::{self, Visit},
};

use crate::{
    errors::Errors,
    function::{Binding, Function, PassBy},
};

/// Refuses a whole training step: it would run twice, and update the weights in the first pass.
pub(crate) fn check(function: &Function, errors: &mut Errors) {
    const WHERE: &str =
        "`#[sam]` goes on the function that computes the loss, and the optimizer's step stays outside it";
    let bindings = function.bindings();
    let mut stepped: Vec<&Binding> = Vec::new();
    for binding in bindings.iter().filter(|binding| binding.in_body && can_step(binding, &function.sig.generics)) {
        // One error for an argument, however many names it binds.
        if !stepped.iter().any(|other| same_argument(other, binding)) {
            stepped.push(binding);
        }
    }
    for binding in stepped {
        errors.refuse(&binding.ty, format!("`{}` is an optimizer: {WHERE}", binding.name));
    }
    let mut steps = Vec::new();
    collect_steps(function.body.clone().into(), &mut steps);
    for step in steps {
        errors.refuse(&step, format!("`{step}` inside a loss function: {WHERE}"));
    }
}

fn same_argument(a: &Binding, b: &Binding) -> bool {
    !a.is_whole && !b.is_whole && a.ty.to_token_stream().to_string() == b.ty.to_token_stream().to_string()
}

/// Whether the binding is an optimizer, and not a shared reference to one.
fn can_step(Binding { ty, pass_by, .. }: &Binding, generics: &Generics) -> bool {
    let has = |names: &[&str]| NamesIn::any(ty, |name| names.iter().any(|other| name == other));
    let is_optimizer =
        |name: &Ident| OPTIMIZERS.iter().any(|other| name == other) || name.to_string().ends_with("Optimizer");
    let mut bounded = HashSet::new();
    for param in generics.type_params() {
        if param.bounds.iter().any(|bound| NamesIn::any_in_bound(bound, is_optimizer)) {
            bounded.insert(&param.ident);
        }
    }
    for predicate in generics.where_clause.iter().flat_map(|clause| &clause.predicates) {
        if let WherePredicate::Type(predicate) = predicate
            && predicate.bounds.iter().any(|bound| NamesIn::any_in_bound(bound, is_optimizer))
            && let Type::Path(ty) = &predicate.bounded_ty
            && let Some(name) = ty.path.get_ident()
        {
            bounded.insert(name);
        }
    }
    let found = NamesIn::any(ty, |name| is_optimizer(name) || bounded.contains(name));
    found && (*pass_by != PassBy::Ref || has(&["Cell", "RefCell", "Mutex", "RwLock"]))
}

/// The optimizers of candle, of crates for it and of `sam_runtime`. Names that end in `Optimizer` are recognized too.
const OPTIMIZERS: [&str; 15] = [
    "SGD", "Sgd", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "AdaMax", "NAdam", "RAdam", "RMSprop", "RmsProp",
    "Lbfgs", "LBFGS", "Lion",
];

/// Finds a type or trait by the last segment of its path, except in the arguments of a closure.
pub(crate) struct NamesIn<F>(F, bool);

impl<F: Fn(&Ident) -> bool> NamesIn<F> {
    pub(crate) fn any(ty: &Type, wanted: F) -> bool {
        let mut names = Self(wanted, false);
        names.visit_type(ty);
        names.1
    }

    fn any_in_bound(bound: &TypeParamBound, wanted: F) -> bool {
        let mut names = Self(wanted, false);
        names.visit_type_param_bound(bound);
        names.1
    }
}

impl<'a, F: Fn(&Ident) -> bool> Visit<'a> for NamesIn<F> {
    fn visit_path(&mut self, path: &'a Path) {
        self.1 |= path.segments.last().is_some_and(|last| (self.0)(&last.ident));
        visit::visit_path(self, path);
    }

    fn visit_parenthesized_generic_arguments(&mut self, _: &'a ParenthesizedGenericArguments) {}
}

/// The names in `.backward_step(..)`.
fn collect_steps(tokens: TokenStream, steps: &mut Vec<Ident>) {
    let mut after_dot = false;
    for token in tokens {
        match &token {
            TokenTree::Group(group) => collect_steps(group.stream(), steps),
            TokenTree::Ident(name) if after_dot && name == "backward_step" => steps.push(name.clone()),
            _ => {}
        }
        after_dot = matches!(&token, TokenTree::Punct(dot) if dot.as_char() == '.');
    }
}
