//! The data sets that can be downloaded: addresses, lengths, hashes.

use clap::ValueEnum;

/// A data set that [`download`](super::download()) can fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Archive {
    /// CIFAR-10, 170 MB.
    #[value(name = "cifar10")]
    Cifar10,
    /// CIFAR-100, 169 MB.
    #[value(name = "cifar100")]
    Cifar100,
    /// MNIST, 12 MB.
    Mnist,
    /// Fashion-MNIST, 31 MB.
    FashionMnist,
    /// Street View House Numbers, cropped, without the extra images, 246 MB.
    Svhn,
}

/// The files of a data set, and the folder that they become.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveSpec<'a> {
    /// Name of the folder.
    pub folder: &'a str,
    /// All of its files.
    pub downloads: &'a [Download<'a>],
}

/// A file to download.
#[derive(Clone, Copy, Debug)]
pub struct Download<'a> {
    /// Its address.
    pub url: &'a str,
    /// Its SHA-256, lower-case hexadecimal.
    pub sha256: &'a str,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its format.
    pub content: Content<'a>,
}

/// The format of a downloaded file.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A file of the data set, with its name.
    File(&'a str),
    /// It is a `.tar.gz` file, in which everything is in a folder of the data set's name. These files of that folder make
    /// the data set, with their length in bytes.
    TarGz(&'a [(&'a str, u64)]),
}

impl Archive {
    /// Where it is: the home pages of CIFAR, Fashion-MNIST and SVHN, and a mirror of MNIST. Lengths and hashes as
    /// TensorFlow Datasets has them.
    #[must_use]
    pub const fn spec(self) -> ArchiveSpec<'static> {
        match self {
            Self::Cifar10 => CIFAR_10,
            Self::Cifar100 => CIFAR_100,
            Self::Mnist => MNIST,
            Self::FashionMnist => FASHION_MNIST,
            Self::Svhn => SVHN,
        }
    }
}

const CIFAR_10: ArchiveSpec<'static> = ArchiveSpec {
    folder: "cifar-10-batches-bin",
    downloads: &[Download {
        url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        bytes: 170_052_171,
        content: Content::TarGz(&[
            ("data_batch_1.bin", 30_730_000),
            ("data_batch_2.bin", 30_730_000),
            ("data_batch_3.bin", 30_730_000),
            ("data_batch_4.bin", 30_730_000),
            ("data_batch_5.bin", 30_730_000),
            ("test_batch.bin", 30_730_000),
        ]),
    }],
};

const CIFAR_100: ArchiveSpec<'static> = ArchiveSpec {
    folder: "cifar-100-binary",
    downloads: &[Download {
        url: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        bytes: 168_513_733,
        content: Content::TarGz(&[("train.bin", 153_700_000), ("test.bin", 30_740_000)]),
    }],
};

macro_rules! files {
    ($base:literal: $($name:literal, $bytes:literal, $sha256:literal;)+) => {
        &[$(Download {
            url: concat!($base, $name),
            sha256: $sha256,
            bytes: $bytes,
            content: Content::File($name),
        }),+]
    };
}

const MNIST: ArchiveSpec<'static> = ArchiveSpec {
    folder: "mnist",
    downloads: files!(
        "https://storage.googleapis.com/cvdf-datasets/mnist/":
        "train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609";
        "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c";
        "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6";
        "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6";
    ),
};

const FASHION_MNIST: ArchiveSpec<'static> = ArchiveSpec {
    folder: "fashion-mnist",
    downloads: files!(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/":
        "train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84";
        "train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845";
        "t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073";
        "t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5";
    ),
};

const SVHN: ArchiveSpec<'static> = ArchiveSpec {
    folder: "svhn",
    downloads: files!(
        "http://ufldl.stanford.edu/housenumbers/":
        "train_32x32.mat", 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8";
        "test_32x32.mat", 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b";
    ),
};
