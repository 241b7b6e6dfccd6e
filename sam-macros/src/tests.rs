//! Expansions, as files in `tests/snapshots` (`UPDATE_EXPECT=1` writes them anew), and refusals.

use expect_test::ExpectFile;
use proc_macro2::TokenStream;
use syn::{Meta, Token, bracketed, parse::ParseStream, parse::Parser as _};

use crate::{args::Args, rewrite::rewrite, validate};

mod derives;
mod expansions;
mod refused_functions;
mod refused_keys;

/// The arguments of `#[sam]` at the head of the source, and the item below it.
fn split(source: &str) -> (TokenStream, TokenStream) {
    let split = |input: ParseStream<'_>| {
        input.parse::<Token![#]>()?;
        let attr;
        bracketed!(attr in input);
        let args = match attr.parse()? {
            Meta::List(list) => list.tokens,
            _ => TokenStream::new(),
        };
        Ok((args, input.parse()?))
    };
    split.parse_str(source).expect("an attribute and an item")
}

fn check_expansion(source: &str, expected: &ExpectFile) {
    let (args, item) = split(source);
    let output = syn::parse2(rewrite(args, item)).expect("items");
    let input: String = source.trim().lines().map(|line| format!("//     {line}\n").replace("     \n", "\n")).collect();
    expected.assert_eq(&format!("// Input\n//\n{input}//\n// Output\n\n{}", prettyplease::unparse(&output)));
}

/// All that is refused, in the order in which it is reported.
fn refusals(source: &str) -> Vec<String> {
    let (args, item) = split(source);
    let errors = validate::validate(Args::parse(args), syn::parse2(item)).err();
    errors.into_iter().flatten().map(|error| error.to_string()).collect()
}

/// With these arguments, on a function that nothing is wrong with.
fn refusals_of(args: &str) -> Vec<String> {
    refusals(&format!(
        "#[sam({args})] fn loss(x: &Tensor, y: Tensor, rng: &mut Rng, sam: &Sam) -> Result<Tensor> {{ f(x, y) }}"
    ))
}
