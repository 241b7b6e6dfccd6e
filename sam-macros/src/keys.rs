//! The table of keys: what the parser accepts, the error messages teach and `with` excludes.
//!
//! A new key is a row here, a field of [`Args`](crate::args::Args) with its arm in `Args::parse_key`, its expansion in
//! `expand.rs`, and a line in the documentation of the attribute.

use syn::Ident;

/// A key and how it is written.
pub(crate) struct KeySyntax {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// In the form of the error messages, with backquotes.
    example: &'static str,
    /// Whether it configures the `Sam`, so that `with` replaces it.
    pub(crate) configures_sam: bool,
    /// Unknown keys that stand for this one: constants of the papers, names of other libraries, other spellings.
    other_names: &'static [&'static str],
}

/// What follows a key.
pub(crate) enum Form {
    Flag,
    /// `= EXPR`, a number.
    Number(Range),
    /// `= EXPR` or nothing.
    OptionalNumber(Range),
    /// `= EXPR`, any iterator over variables.
    Variables,
    /// `= NAME`
    Name,
    /// `= ARGUMENT`
    Argument,
    /// `= ::path`
    Path,
    /// `= EXPR`, the ranks of a distributed training.
    Ranks,
    /// `= synchronized` or `= per_rank`
    Ascent,
    /// `(argument, ..)`
    Arguments,
    /// `(argument, ..; m = EXPR, option = ..)`
    Batch(BatchKey),
}

/// The numbers that a key takes.
pub(crate) struct Range {
    least: f64,
    below: Option<f64>,
    pub(crate) expected: &'static str,
}

/// The keys that split or select the samples of a batch.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum BatchKey {
    Shards,
    MicroBatches,
    Hardest,
    Sharpest,
}

#[rustfmt::skip]
const KEY_SYNTAX: [KeySyntax; 20] = [
    sam("rho", Form::Number(AT_LEAST_0), "`rho = 0.05`", &["radius"]),
    sam("p", Form::Number(NORM), "`p = 2` or `p = inf`", &["norm_type", "ord"]),
    sam("adaptive", Form::OptionalNumber(AT_LEAST_0), "`adaptive` or `adaptive = 0.01`", &["eta", "asam"]),
    sam("unnormalized", Form::Flag, "`unnormalized`", &["unnormalised", "usam"]),
    sam("gsam", Form::Number(AT_LEAST_0), "`gsam = 0.4`", &["alpha"]),
    sam("wsam", Form::Number(BELOW_1), "`wsam = 0.9`", &["gamma"]),
    sam("stable", Form::Flag, "`stable`", &["stable_sam"]),
    sam("second_order", Form::Flag, "`second_order`", &[]),
    sam("vars", Form::Variables, "`vars = model.vars()`", &["params", "parameters"]),
    sam("buffers", Form::Variables, "`buffers = [mean.clone(), var.clone()]`", &["stats", "state"]),
    sam("all_reduce", Form::Ranks, "`all_reduce = world`, and add an argument `world: &Comm`",
        &["comm", "world", "distributed"]),
    sam("ascent", Form::Ascent, "`ascent = synchronized` or `ascent = per_rank`", &["synchronized", "per_rank"]),
    key("replay", Form::Arguments, "`replay(rng)`", &["rng", "seed"]),
    key("shards", Form::Batch(BatchKey::Shards), "`shards(x, y; m = 32)`",
        &["m", "m_sharpness", "reduction", "weights"]),
    key("micro_batches", Form::Batch(BatchKey::MicroBatches), "`micro_batches(x, y; m = 32)`",
        &["micro_batch", "parts"]),
    key("hardest", Form::Batch(BatchKey::Hardest), "`hardest(x, y; k = 32)`", &["k", "ksam"]),
    key("sharpest", Form::Batch(BatchKey::Sharpest), "`sharpest(x, y; k = 64)`", &["esam"]),
    key("plain", Form::Name, "`plain = plain_loss`", &[]),
    key("with", Form::Argument, "`with = sam`, and add an argument `sam: &Sam`", &["sam", "config"]),
    key("crate", Form::Path, "`crate = ::sam_runtime`", &[]),
];

const AT_LEAST_0: Range = Range { least: 0.0, below: None, expected: "a number of at least 0" };
const NORM: Range = Range { least: 1.0, below: None, expected: "a number of at least 1, or `inf`" };
const BELOW_1: Range = Range { least: 0.0, below: Some(1.0), expected: "a number of at least 0 and below 1" };

/// A key that configures the `Sam`.
const fn sam(name: &'static str, form: Form, example: &'static str, other_names: &'static [&'static str]) -> KeySyntax {
    KeySyntax { name, form, example, configures_sam: true, other_names }
}

/// A key that configures the rewritten function.
const fn key(name: &'static str, form: Form, example: &'static str, other_names: &'static [&'static str]) -> KeySyntax {
    KeySyntax { name, form, example, configures_sam: false, other_names }
}

pub(crate) fn find(key: &Ident) -> Option<&'static KeySyntax> {
    KEY_SYNTAX.iter().find(|known| key == known.name)
}

/// What to say of a key that is not in the table.
pub(crate) fn unknown(key: &Ident) -> String {
    match KEY_SYNTAX.iter().find(|known| known.other_names.iter().any(|other| key == other)) {
        Some(known) => format!("unknown key `{key}`: write {}", known.example),
        None => format!("unknown key `{key}`: expected {}", list()),
    }
}

/// The names of all keys, for a message.
pub(crate) fn list() -> String {
    format!("one of {}", KEY_SYNTAX.map(|known| format!("`{}`", known.name)).join(", "))
}

impl KeySyntax {
    /// What to say of this key in another form than its own.
    ///
    /// `is_bare`: nothing follows it.
    pub(crate) fn misuse(&self, is_bare: bool) -> String {
        let Self { name, form, example, .. } = self;
        let takes = match form {
            Form::Flag => return format!("`{name}` takes no value"),
            Form::Number(_) | Form::Variables | Form::Ranks if is_bare => {
                return format!("`{name}` needs a value, e.g. {example}");
            }
            Form::Number(_) | Form::Ranks => "a value",
            Form::OptionalNumber(_) => "one value or none",
            Form::Variables => "a list of variables",
            Form::Name => "a name",
            Form::Argument => "the name of an argument",
            Form::Path => "a path",
            Form::Ascent => "one of two names",
            Form::Arguments => "a list of arguments",
            Form::Batch(_) => "a list of arguments and a number",
        };
        format!("`{name}` takes {takes}: write {example}")
    }

    /// What to say of a token behind this key that no form has.
    pub(crate) fn unexpected(&self, token: &str) -> String {
        format!("unexpected `{token}` after `{}`: write {}", self.name, self.example)
    }

    pub(crate) fn range(&self) -> Option<&Range> {
        match &self.form {
            Form::Number(range) | Form::OptionalNumber(range) => Some(range),
            _ => None,
        }
    }
}

impl Range {
    pub(crate) fn contains(&self, value: f64) -> bool {
        value >= self.least && self.below.is_none_or(|below| value < below)
    }
}

impl BatchKey {
    /// The name of its number.
    pub(crate) fn size(self) -> &'static str {
        match self {
            Self::Shards | Self::MicroBatches => "m",
            Self::Hardest | Self::Sharpest => "k",
        }
    }

    /// Whether it uses the whole batch, piece by piece, and not a selection from it.
    pub(crate) fn uses_all_samples(self) -> bool {
        matches!(self, Self::Shards | Self::MicroBatches)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_means_one_key() {
        let names: Vec<_> = KEY_SYNTAX.iter().flat_map(|known| [&[known.name], known.other_names].concat()).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }

    #[test]
    fn every_key_is_documented() {
        let docs = include_str!("lib.rs");
        for KeySyntax { name, .. } in &KEY_SYNTAX {
            assert!(docs.contains(&format!("/// | `{name}")), "{name}");
        }
    }
}
