//! The same as one HTML page that needs nothing else: it turns with the mouse or a finger.

use serde_json::json;

use super::measure::Landscapes;

const PAGE: &str = include_str!("page.html");

/// The page. The rows of the table have the head first.
pub(super) fn page(found: &Landscapes, title: &str, note: &str, table: &[Vec<String>]) -> String {
    let networks: Vec<_> = found
        .networks
        .iter()
        .map(|network| {
            json!({
                "name": network.name,
                "plane": network.plane,
                "ascent": network.ascent,
                "spectrum": network.spectrum.density,
            })
        })
        .collect();
    let between = "The loss on the straight line between the weights of two networks, from one (0) to the other (1); test loss dashed.";
    let data = json!({
        "title": title,
        "note": note,
        "table": table,
        "x": found.x,
        "y": found.x,
        "networks": networks,
        "lines": found.lines,
        "between": between,
    });
    // Nothing in the data may end the element that it stands in.
    PAGE.replace("DATA", &data.to_string().replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        let found = Landscapes { x: vec![0.0, 1.0], networks: Vec::new(), lines: Vec::new() };
        let page = page(&found, "</script><b>", "", &[]);
        assert!(page.contains("\\u003c/script>\\u003cb>") && !page.contains("</script><b>"));
        assert!(!page.contains("http"), "the page loads nothing");
    }
}
