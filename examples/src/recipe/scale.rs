//! Scaled-down runs, which are labeled as such.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, bail};

/// Shares of a run: of its epochs or steps, of its training images, of the network's width. Read from one number for all three,
/// or `epochs=0.1,images=0.2,width=0.25`.
///
/// ```
/// use sam_examples::recipe::Scale;
///
/// let scale: Scale = "epochs=0.1,width=0.5".parse()?;
/// assert_eq!((scale.epochs, scale.images, scale.width), (0.1, 1.0, 0.5));
/// assert_eq!(scale.to_string(), "epochs=0.1,width=0.5");
/// assert_eq!("1".parse::<Scale>()?.to_string(), "full");
/// assert!("size=3".parse::<Scale>().is_err());
/// # Ok::<_, anyhow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Of the epochs.
    pub epochs: f64,
    /// Of the training images.
    pub images: f64,
    /// Of the network's width.
    pub width: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Self { epochs: 1.0, images: 1.0, width: 1.0 }
    }
}

impl Scale {
    /// A label for a recipe that is changed by this and by further settings, `key = value`; empty if it is not changed.
    #[must_use]
    pub fn with(&self, set: &[String]) -> String {
        let scale = Some(self.to_string()).filter(|_| *self != Self::default());
        let word = |set: &String| set.chars().filter(|c| !c.is_whitespace() && !"\"'/\\".contains(*c)).collect();
        scale.into_iter().chain(set.iter().map(word)).collect::<Vec<String>>().join(",")
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [("epochs", self.epochs), ("images", self.images), ("width", self.width)];
        let parts: Vec<_> =
            named.iter().filter(|(_, share)| *share != 1.0).map(|(name, share)| format!("{name}={share}")).collect();
        f.write_str(&if parts.is_empty() { "full".to_owned() } else { parts.join(",") })
    }
}

impl FromStr for Scale {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let share = |text: &str| match text.parse::<f64>() {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
            _ => bail!("`{text}` is not a share: expected more than 0 and at most 1"),
        };
        if !text.contains('=') {
            let share = share(text)?;
            return Ok(Self { epochs: share, images: share, width: share });
        }
        let mut scale = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("epochs", value)) => scale.epochs = share(value)?,
                Some(("images", value)) => scale.images = share(value)?,
                Some(("width", value)) => scale.width = share(value)?,
                _ => bail!("`{part}` cannot be scaled: expected epochs=, images= or width="),
            }
        }
        Ok(scale)
    }
}
