//! Differences between the recipe of a file and that of a training.

use std::collections::BTreeMap;

use crate::recipe::{RecipePatch, Scale};

/// The keys in which a recipe of a file, as JSON, differs from the expected one. Missing keys have their defaults: the file is
/// from a version without them.
pub(crate) fn differences(found: &str, expected: &str) -> Vec<String> {
    let (found, expected) = (whole(found), whole(expected));
    let mut keys: Vec<_> = expected.keys().chain(found.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| found.get(key) != expected.get(key));
    keys
}

/// The first difference of two recipes, as text.
pub(crate) fn difference(found: &str, expected: &str) -> Option<String> {
    let key = differences(found, expected).into_iter().next()?;
    let (found, expected) = (whole(found), whole(expected));
    let show = |value: Option<&serde_json::Value>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    Some(format!("expected `{key}` {}, found {}", show(expected.get(&key)), show(found.get(&key))))
}

/// All keys of a recipe, with defaults for missing ones.
fn whole(recipe: &str) -> BTreeMap<String, serde_json::Value> {
    fn object(text: &str) -> BTreeMap<String, serde_json::Value> {
        serde_json::from_str(text).unwrap_or_default()
    }
    let defaults =
        RecipePatch::default().recipe(&Scale::default()).ok().and_then(|recipe| serde_json::to_string(&recipe).ok());
    let defaults = defaults.map(|text| object(&text)).unwrap_or_default();
    defaults.into_iter().chain(object(recipe)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_compared() {
        let (found, expected) = (r#"{"lr":0.1,"model":"mlp"}"#, r#"{"lr":0.1,"model":"cnn"}"#);
        assert_eq!(difference(found, expected).unwrap(), "expected `model` \"cnn\", found \"mlp\"");
        assert_eq!(difference(found, found), None);
        assert_eq!(differences(found, r#"{"lr":0.2,"epochs":3.0}"#), ["epochs", "lr"]);
    }
}
