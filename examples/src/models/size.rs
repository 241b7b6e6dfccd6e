//! Sizes of vision transformers and mixers.

/// The size of a vision transformer or a mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Tiny.
    Ti,
    /// Small.
    S,
    /// Base.
    B,
}

impl Size {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ti => "ti",
            Self::S => "s",
            Self::B => "b",
        }
    }

    /// The width of a vision transformer, whose heads have 64 channels.
    pub(super) fn vit_width(self) -> usize {
        match self {
            Self::Ti => 192,
            Self::S => 384,
            Self::B => 768,
        }
    }

    pub(super) fn mixer_width(self) -> usize {
        match self {
            Self::Ti => 128,
            Self::S => 512,
            Self::B => 768,
        }
    }

    /// The blocks of a mixer.
    pub(super) fn mixer_blocks(self) -> usize {
        match self {
            Self::Ti | Self::S => 8,
            Self::B => 12,
        }
    }

    /// The heads of a vision transformer.
    pub(super) fn heads(self) -> usize {
        self.vit_width() / 64
    }
}
