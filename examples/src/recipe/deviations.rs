//! The deviations of the recipes from the paper and from the publications of the methods: the only list of them.

use std::fmt::Write as _;

/// A deviation from a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// What it is about: a part of the recipes, or a method.
    pub of: &'static str,
    /// What is different here, and how it is in the publication.
    pub what: &'static str,
    /// The place in the publication or its code.
    pub source: &'static str,
}

const fn deviation(of: &'static str, what: &'static str, source: &'static str) -> Deviation {
    Deviation { of, what, source }
}

const SAM: &str = "google-research/sam";
const PAPER: &str = "the paper";
const O2U: &str = "hjimce/O2U-Net, main.py";
const INCV: &str = "chenpf1025/noisy_label_understanding_utilizing, INCV_main.py";
const ROG: &str = "pokaxpoka/RoGNoisyLabel, inference.py";
const GCE: &str = "AlanChou/Truncated-Loss (not the authors')";
const M_DYR_H: &str = "PaulAlbert31/LabelNoiseCorrection, utils.py";
const MENTORS: &str = "google/mentornet, code/; google-research/google-research, mentormix/code/";

/// All of them.
pub static DEVIATIONS: &[Deviation] = &[
    deviation(
        "constants",
        "The paper does not state them, and they are chosen here: PyramidNet's and Shake-Shake's epochs (it follows earlier work \
         there); batch, learning rate and weight decay of Table 4 (those of its other CIFAR runs); the networks of the m-sharpness \
         figure; the learning rate of Figure 3; the epochs on SVHN.",
        PAPER,
    ),
    deviation(
        "normalization",
        "Each set of images has its own mean and standard deviation. The authors normalize Fashion-MNIST by 0.1307 and 0.3081, \
         those of MNIST.",
        "google-research/sam, sam_jax/datasets/dataset_source.py",
    ),
    deviation(
        "Mixup",
        "The partners are a random permutation of the batch, and the share is drawn as it is. In the authors' code the partners are the \
         batch in reverse, and an image has the larger share of its own mixture.",
        "google-research/sam, sam_jax/datasets/augmentation.py",
    ),
    deviation(
        "Table 3",
        "ResNet-50 in place of EfficientNet-b7 and -L2, whose weights are not here; the three columns that are not of b7 with \
         ρ = 0.05 or without SAM are left out. On ImageNet the authors' example clips at 1 and smooths labels by 0.1; here `clip` is 5 \
         and `smoothing` 0.",
        "google-research/sam, README.md",
    ),
    deviation(
        "label noise",
        "Each label is drawn anew with the stated probability, from all classes, so that of ten classes nine tenths of that share \
         are wrong: 36 % for 40 %. It is drawn for each seed. The paper says neither.",
        PAPER,
    ),
    deviation(
        "validation",
        "The last tenth of the training images is held out. The paper has a random tenth for noisy labels; its code has the last \
         tenth.",
        "google-research/sam, sam_jax/datasets/dataset_source.py",
    ),
    deviation(
        "AutoAugment",
        "The operations have the magnitudes of the original code for CIFAR. The authors' have those for ImageNet: translations of up to \
         250 pixels, Cutout of up to 100, solarizing and posterizing that are weaker at higher levels, and holes filled with 128.",
        "google-research/sam, autoaugment/autoaugment.py",
    ),
    deviation(
        "Cutout",
        "The square is drawn for each image. The authors draw one for the whole batch.",
        "google-research/sam, sam_jax/datasets/augmentation.py",
    ),
    deviation(
        "padding",
        "Convolutions and poolings of stride 2 are padded by the same on both sides. Flax and TensorFlow pad by 0 before and 1 after \
         where the side is even (`SAME`).",
        SAM,
    ),
    deviation(
        "ImageNet's images",
        "The logarithm of a crop's aspect ratio is drawn uniformly; where ten crops do not fit, the central square is taken; and pictures \
         are made smaller by a cubic filter that averages. The authors draw the ratio itself, want a crop to hold a tenth of the \
         picture, take the crop of the evaluation where ten attempts fail, and interpolate without averaging.",
        "google-research/sam, sam_jax/datasets/dataset_source_imagenet.py",
    ),
    deviation(
        "Table 3's CIFAR",
        "Images are scaled to 224 pixels bilinearly. The authors do it bicubically.",
        "google-research/sam, sam_jax/datasets/dataset_source.py",
    ),
    deviation(
        "Table 5's SVHN",
        "The training images are the 73,257 of `train_32x32.mat`. The authors add the 531,131 of `extra_32x32.mat`, which are not read \
         here.",
        "google-research/sam, sam_jax/datasets/dataset_source.py",
    ),
    deviation(
        "Figure 3, right",
        "The rank correlation of sharpness and generalization gap is among the networks of `figure3`. The paper has the mutual \
         information of m-sharpness and gap, of the networks of a competition.",
        PAPER,
    ),
    deviation(
        "Figures 4 and 5",
        "The error at w + ε̂ is that of the step's images, with ε̂ of the whole batch. The cosine is that of gradients.",
        PAPER,
    ),
    deviation("Figure 7", "The log has L(w + ε̂) - L(w) of the loss. The paper has the error rate.", PAPER),
    deviation(
        "Table 4's methods",
        "All have one network, schedule, batch and weight decay, those of Table 4, in shards of 32 images; M-DYR-H's divergence from even \
         predictions is that of a shard. Their authors have other ones. Where the losses of all images are looked at, these are not \
         augmented.",
        "the methods' code",
    ),
    deviation(
        "MentorNet and MentorMix",
        "The threshold on the losses, which the authors call the simplest form, in place of their trained network. MentorNet's authors \
         reduce the weight decay by the share of the trusted examples, and where MentorMix weighs its mixtures, its authors' code has \
         no weight decay; here it is the same throughout. MentorMix's authors test an average of the weights; here it is the last \
         weights. The learning rate is that of Table 4.",
        MENTORS,
    ),
    deviation(
        "M-DYR-H",
        "A forward pass that only looks does not move running statistics. The authors' moves them.",
        M_DYR_H,
    ),
    deviation(
        "O2U-Net",
        "Its trainings have a quarter, a half and all of the epochs, at learning rates that are shares of Table 4's, and one batch. The \
         authors' have 250 epochs each, the second with batches of 16. An image that an epoch leaves out, since the last \
         batch would be smaller, adds nothing in that epoch. The first training has a constant learning rate; theirs \
         is halved after a quarter of the epochs, and a tenth of the first one after half of them.",
        O2U,
    ),
    deviation(
        "INCV",
        "The selection alone: the last training is an ordinary one on the selected images. The authors use co-teaching of two networks, \
         and later the other images too. They take the epoch with the best held-out accuracy in the first one, two or four rounds (an \
         estimate of more than 60 % or 30 % of wrong labels, or of fewer); here it is the last epoch in all. A round has a quarter of the epochs and Table 4's optimizer; theirs is Adam for 50 of 200. Each image \
         is put in one half or the other with equal probability; the authors' halves have as many images each.",
        INCV,
    ),
    deviation(
        "RoG",
        "The features are those before the last layer, and the first estimate is of all images of a class. The authors weigh several \
         layers by validation images, and begin with a random 70 % of each class; their first covariance is nearly that of the last \
         class alone, since it is divided by the number of images once for each class. A ten-thousandth of the mean variance is added to \
         the covariance's diagonal here; they take a pseudo-inverse.",
        ROG,
    ),
    deviation(
        "GCE",
        "Examples are left out by the current model. In the publication it is that of the epoch which does best on validation images, \
         in the public code that of the best test accuracy.",
        GCE,
    ),
];

/// The list in Markdown.
#[must_use]
pub fn deviations() -> String {
    let mut text = "| of | here | source |\n| --- | --- | --- |\n".to_owned();
    for Deviation { of, what, source } in DEVIATIONS {
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {of} | {what} | {source} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = include_str!("../../recipes/README.md");

    /// The README shows what `paper list --deviations` prints.
    #[test]
    fn the_readme_has_the_list() {
        let heading = "## Deviations\n";
        let shown = README.split_once(heading).map(|(_, rest)| rest).unwrap_or_default();
        assert!(
            shown.contains(&deviations()),
            "put this below \"Deviations\" in recipes/README.md:\n\n{}",
            deviations()
        );
    }

    #[test]
    fn every_line_says_what_of_and_where() {
        for deviation in DEVIATIONS {
            let Deviation { of, what, source } = deviation;
            assert!(!of.is_empty() && what.ends_with('.') && !source.is_empty(), "{deviation:?}");
            assert!(!what.contains('|') && !what.contains("  "), "{deviation:?}");
        }
    }
}
