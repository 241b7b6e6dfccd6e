//! Larger images by interpolation.
