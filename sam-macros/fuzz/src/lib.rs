//! The properties of the macros that the fuzzer checks for any text.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use rewrite::rewrite;

#[path = "../../src/args.rs"]
mod args;
#[path = "../../src/derive.rs"]
mod derive;
#[path = "../../src/errors.rs"]
mod errors;
#[path = "../../src/expand.rs"]
mod expand;
#[path = "../../src/function.rs"]
mod function;
#[path = "../../src/keys.rs"]
mod keys;
#[path = "../../src/optimizer_step.rs"]
mod optimizer_step;
#[path = "../../src/plain.rs"]
mod plain;
#[path = "../../src/rebind.rs"]
mod rebind;
#[path = "../../src/rewrite.rs"]
mod rewrite;
#[path = "../../src/validate.rs"]
mod validate;

/// Checks that the macros do not panic, expand to items what they accept, and emit as written what they refuse.
///
/// The first line of the text is the arguments of `#[sam(..)]`, the rest is the item below it.
///
/// # Panics
///
/// If they do not.
pub fn check(text: &str) {
    let (args, item) = text.split_once('\n').unwrap_or((text, ""));
    // Without a limit, the parser's own recursion ends the run.
    if [args, item].into_iter().any(|text| depth(text) > 64) {
        return;
    }
    let (Ok(args), Ok(item)) = (args.parse::<TokenStream>(), item.parse::<TokenStream>()) else { return };
    let written = syn::parse2::<syn::Item>(item.clone());
    for derive in [derive::aux, derive::loss_output] {
        if let Ok(implementation) = derive(item.clone()) {
            assert!(syn::parse2::<syn::File>(implementation.clone()).is_ok(), "no items: {implementation}");
        }
    }
    let output = rewrite(args.clone(), item.clone());
    let refused = validate::validate(args::Args::parse(args), syn::parse2(item.clone())).is_err();
    if refused {
        let (names, kept) = (names(item), names(output.clone()));
        assert!(kept.contains("compile_error"), "no error: {output}");
        for name in names {
            assert!(kept.contains(&name), "without `{name}`: {output}");
        }
    } else if written.is_ok() {
        assert!(syn::parse2::<syn::File>(output.clone()).is_ok(), "no items: {output}");
    }
}

fn names(tokens: TokenStream) -> std::collections::HashSet<String> {
    let mut names = std::collections::HashSet::new();
    let mut rest = vec![tokens];
    while let Some(tokens) = rest.pop() {
        for token in tokens {
            match token {
                TokenTree::Group(group) if group.delimiter() != Delimiter::None => rest.push(group.stream()),
                TokenTree::Ident(name) => drop(names.insert(name.to_string())),
                _ => {}
            }
        }
    }
    names
}

fn depth(text: &str) -> usize {
    text.bytes().filter(|byte| b"([{<&*-!|".contains(byte)).count()
}
