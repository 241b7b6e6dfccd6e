//! Metrics of a model where each rank tests on a part of the images.

use anyhow::Result;
use sam_runtime::distributed::Comm;

use super::Scores;
use crate::data::ImageSet;

/// Of some images those that this rank tests on.
fn part(images: &ImageSet, world: &Comm) -> ImageSet {
    if world.size() == 1 {
        return images.clone();
    }
    let border = |rank: usize| images.len() * rank / world.size();
    images.part(images.indices()[border(world.rank())..border(world.rank() + 1)].to_vec())
}

/// A test on some images, of which each rank takes a part: the mean over all of them.
///
/// # Errors
/// Those of the test, and of the communication.
pub fn test<R>(images: &ImageSet, world: &Comm, of: impl FnOnce(&ImageSet) -> Result<R>) -> Result<R>
where
    R: Mean,
{
    let part = part(images, world);
    let found = of(&part)?;
    if world.size() == 1 { Ok(found) } else { found.mean(part.len() as f64, world) }
}

/// What can be averaged over the ranks.
pub trait Mean: Sized {
    /// The mean over all images, of what each rank has found on so many.
    ///
    /// # Errors
    /// Those of the communication.
    fn mean(self, count: f64, world: &Comm) -> Result<Self>;
}

impl Mean for f64 {
    fn mean(self, count: f64, world: &Comm) -> Result<Self> {
        // Of no images there is no mean.
        let sum = if count > 0.0 { self * count } else { 0.0 };
        Ok(world.mean(sum)? / world.mean(count)?)
    }
}

impl Mean for Option<f64> {
    fn mean(self, count: f64, world: &Comm) -> Result<Self> {
        self.map(|value| value.mean(count, world)).transpose()
    }
}

impl Mean for Scores {
    fn mean(self, count: f64, world: &Comm) -> Result<Self> {
        Ok(Self { error: self.error.mean(count, world)?, loss: self.loss.mean(count, world)? })
    }
}
