//! Data sets from the network: downloaded, checked, unpacked, and only then put in place.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::DataError;

/// A data set that [`download`] knows where to find.
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

/// What is downloaded, and the folder that it becomes.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Name of the folder.
    pub folder: &'a str,
    /// Everything that belongs in it.
    pub downloads: &'a [Download<'a>],
}

/// A file of the network.
#[derive(Clone, Copy, Debug)]
pub struct Download<'a> {
    /// Where it is.
    pub url: &'a str,
    /// Its SHA-256, lower-case hexadecimal.
    pub sha256: &'a str,
    /// Its length in bytes.
    pub bytes: u64,
    /// What it is.
    pub content: Content<'a>,
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// It is put in the folder as it is, under this name.
    File(&'a str),
    /// It is a `.tar.gz` file, in which everything is in a folder of the data set's name. These files of that folder make
    /// the data set, with their length in bytes.
    TarGz(&'a [(&'a str, u64)]),
}

impl Archive {
    /// Where it is: the home pages of CIFAR, Fashion-MNIST and SVHN, and a mirror of MNIST. Lengths and hashes as
    /// TensorFlow Datasets has them.
    #[must_use]
    pub const fn source(self) -> Source<'static> {
        match self {
            Self::Cifar10 => CIFAR_10,
            Self::Cifar100 => CIFAR_100,
            Self::Mnist => MNIST,
            Self::FashionMnist => FASHION_MNIST,
            Self::Svhn => SVHN,
        }
    }
}

const CIFAR_10: Source<'static> = Source {
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

const CIFAR_100: Source<'static> = Source {
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

const MNIST: Source<'static> = Source {
    folder: "mnist",
    downloads: files!(
        "https://storage.googleapis.com/cvdf-datasets/mnist/":
        "train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609";
        "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c";
        "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6";
        "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6";
    ),
};

const FASHION_MNIST: Source<'static> = Source {
    folder: "fashion-mnist",
    downloads: files!(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/":
        "train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84";
        "train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845";
        "t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073";
        "t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5";
    ),
};

const SVHN: Source<'static> = Source {
    folder: "svhn",
    downloads: files!(
        "http://ufldl.stanford.edu/housenumbers/":
        "train_32x32.mat", 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8";
        "test_32x32.mat", 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b";
    ),
};

/// Downloads a known data set: [`fetch`] from [`Archive::source`].
///
/// # Errors
///
/// As [`fetch`].
pub fn download(archive: Archive, into: &Path, progress: &ProgressBar) -> Result<PathBuf, DataError> {
    fetch(&archive.source(), into, progress)
}

/// Downloads files, checks the length and the hash of each, puts them, or what they unpack to, in a folder of the
/// data set's own in `into` (made if need be), and returns that folder, for [`load`](super::load). If it is there
/// already and complete, nothing is done.
///
/// Servers are trusted by the certificates of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR` where these are set;
/// by those that are compiled in where a system has none.
///
/// `progress` is made to count bytes; [`ProgressBar::hidden`] for silence.
///
/// # Errors
///
/// If the network fails, if a file is not the right one, and if `into` cannot be written to. What has been written
/// is gone again then. A folder that is there but incomplete is an error too: nobody's files are replaced.
pub fn fetch(source: &Source<'_>, into: &Path, progress: &ProgressBar) -> Result<PathBuf, DataError> {
    let target = into.join(source.folder);
    if target.exists() {
        source.check_files(&target)?;
        return Ok(target);
    }
    let _made = MadeFolders::make(into).map_err(DataError::writing(into))?;
    let received = source.receive(into, progress)?;
    // On the same file system as the target, so that putting it in place is one step.
    let scratch = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(into).map_err(DataError::writing(into))?;
    for (download, file) in source.downloads.iter().zip(received) {
        match download.content {
            Content::File(name) => copy(file, &scratch.path().join(source.folder), name)?,
            Content::TarGz(_) => download.unpack(file, scratch.path(), source.folder)?,
        }
    }
    let unpacked = scratch.path().join(source.folder);
    source.check_files(&unpacked)?;
    fs::rename(&unpacked, &target).map_err(DataError::writing(&target))?;
    Ok(target)
}

/// Copies a file into a folder, which is made if need be.
fn copy(mut from: File, folder: &Path, name: &str) -> Result<(), DataError> {
    let path = folder.join(name);
    let copied = fs::create_dir_all(folder)
        .and_then(|()| File::create_new(&path))
        .and_then(|mut to| io::copy(&mut from, &mut to));
    copied.map(drop).map_err(DataError::writing(&path))
}

/// Whose certificates a server is trusted by.
fn roots() -> Result<RootCerts, DataError> {
    let named = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let mut found = rustls_native_certs::load_native_certs();
    match named {
        _ if !found.certs.is_empty() => {
            let certificates: Vec<_> = found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
            Ok(RootCerts::from(certificates))
        }
        Some(path) => Err(DataError::Certificates { path, source: found.errors.pop() }),
        None => Ok(RootCerts::WebPki),
    }
}

impl Source<'_> {
    /// All files, each without a name: not even a killed process leaves them behind.
    fn receive(&self, into: &Path, progress: &ProgressBar) -> Result<Vec<File>, DataError> {
        let needs_roots = self.downloads.iter().any(|download| download.url.starts_with("https:"));
        let roots = if needs_roots { roots()? } else { RootCerts::WebPki };
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_mins(1)))
            .timeout_per_read(Some(Duration::from_mins(1)))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into();
        progress.set_length(self.downloads.iter().map(|download| download.bytes).sum());
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left") {
            progress.set_style(style);
        }
        let received = self.downloads.iter().map(|download| download.receive(&agent, into, progress)).collect();
        progress.finish_and_clear();
        received
    }

    fn check_files(&self, folder: &Path) -> Result<(), DataError> {
        for download in self.downloads {
            match download.content {
                Content::File(name) => check_file(folder.join(name), download.bytes)?,
                Content::TarGz(files) => {
                    files.iter().try_for_each(|&(name, expected)| check_file(folder.join(name), expected))?;
                }
            }
        }
        Ok(())
    }
}

fn check_file(path: PathBuf, expected: u64) -> Result<(), DataError> {
    let found = fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|file| file.len());
    if found == Some(expected) { Ok(()) } else { Err(DataError::Incomplete { path, expected, found }) }
}

impl Download<'_> {
    fn receive(&self, agent: &ureq::Agent, into: &Path, progress: &ProgressBar) -> Result<File, DataError> {
        let mut file = tempfile::tempfile_in(into).map_err(DataError::writing(into))?;
        let mut response = agent.get(self.url).call().map_err(|source| self.network_error(source))?;
        self.copy(response.body_mut().as_reader(), &mut file, into, progress)?;
        file.rewind().map_err(DataError::writing(into))?;
        Ok(file)
    }

    /// Copies the right number of bytes with the right hash, or fails.
    fn copy(&self, from: impl Read, to: &mut impl Write, into: &Path, progress: &ProgressBar) -> Result<(), DataError> {
        let mut from = from.take(self.bytes.saturating_add(1));
        let mut hash = Sha256::new();
        let mut found = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let chunk = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => &buffer[..length],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.network_error(error.into())),
            };
            hash.update(chunk);
            to.write_all(chunk).map_err(DataError::writing(into))?;
            found += chunk.len() as u64;
            progress.inc(chunk.len() as u64);
        }
        if found != self.bytes {
            return Err(DataError::DownloadSize { url: self.url.to_owned(), expected: self.bytes, found });
        }
        let found = hex(&hash.finalize());
        if found != self.sha256 {
            let expected = self.sha256.to_owned();
            return Err(DataError::DownloadHash { url: self.url.to_owned(), expected, found });
        }
        Ok(())
    }

    fn unpack(&self, archive: File, into: &Path, folder: &str) -> Result<(), DataError> {
        let failed = |source| DataError::Unpack { url: self.url.to_owned(), path: into.to_path_buf(), source };
        let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(archive)));
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let path = entry.path().map_err(failed)?.into_owned();
            let kind = entry.header().entry_type();
            // No links: with them, a path within the folder can lead out of it.
            let is_plain = kind.is_file() || kind.is_dir();
            let is_inside =
                path.starts_with(folder) && path.components().all(|part| matches!(part, Component::Normal(_)));
            if !(is_plain && is_inside) {
                let (url, folder) = (self.url.to_owned(), folder.to_owned());
                return Err(DataError::ForeignEntry { url, entry: path, folder });
            }
            entry.unpack_in(into).map_err(failed)?;
        }
        Ok(())
    }

    fn network_error(&self, source: ureq::Error) -> DataError {
        DataError::Network { url: self.url.to_owned(), source: Box::new(source) }
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// Folders that had to be made, the innermost first; those that are empty in the end go again.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(path: &Path) -> io::Result<Self> {
        let missing = path.ancestors().take_while(|folder| !folder.exists()).map(Path::to_path_buf);
        let made = Self(missing.collect());
        fs::create_dir_all(path)?;
        Ok(made)
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Fails for one that is not empty: that one stays.
            drop(fs::remove_dir(folder));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::BufRead;
    use std::net::TcpListener;
    use std::process::Command;
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};

    use flate2::{Compression, write::GzEncoder};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use tar::{EntryType, Header};
    use tempfile::TempDir;

    use super::*;

    const FOLDER: &str = "set";
    const FILES: &[(&str, u64)] = &[("a.bin", 5), ("b.bin", 3)];

    /// A server that answers one request, with these bytes after a header of this status and length.
    struct Server {
        url: String,
        thread: JoinHandle<()>,
    }

    fn serve(status: &str, length: usize, body: &[u8]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/set.tar.gz", listener.local_addr().unwrap());
        let mut answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        answer.extend(body);
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert!(lines.map(Result::unwrap).take_while(|line| !line.is_empty()).count() > 0);
            drop(stream.write_all(&answer)); // the client may hang up on a body it does not like
        });
        Server { url, thread }
    }

    /// A server that answers two requests over TLS, by a certificate of its own for `localhost`; and the certificate.
    fn serve_tls(body: &'static [u8]) -> (String, String) {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("localhost:0").unwrap();
        let url = format!("https://localhost:{}/set", listener.local_addr().unwrap().port());
        thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
                let lines = stream.by_ref().lines().map_while(Result::ok);
                // None if the client does not trust the certificate.
                if lines.take_while(|line| !line.is_empty()).count() > 0 {
                    let header = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.get_mut().write_all(&[header.as_bytes(), body].concat()).unwrap();
                }
            }
        });
        (url, cert.pem())
    }

    fn archived<'a>(url: &'a str, archive: &[u8], sha256: &'a str) -> Download<'a> {
        Download { url, sha256, bytes: archive.len() as u64, content: Content::TarGz(FILES) }
    }

    fn fetch_one(download: Download<'_>, into: &Path, progress: &ProgressBar) -> Result<PathBuf, DataError> {
        fetch(&Source { folder: FOLDER, downloads: &[download] }, into, progress)
    }

    fn sha256(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            // `set_path` would refuse the bad ones.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/tmp").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn sound_archive() -> Vec<u8> {
        archive(&[("set/a.bin", EntryType::Regular, b"aaaaa"), ("set/b.bin", EntryType::Regular, b"bbb")])
    }

    /// Fetches from a server that gives `answer` where `archive` is expected, into a folder that does not exist yet;
    /// asserts that it fails and that nothing, not even the folder, stays behind.
    fn failure(archive: &[u8], status: &str, length: usize, answer: &[u8]) -> DataError {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(status, length, answer);
        let hash = sha256(archive);
        let error =
            fetch_one(archived(&server.url, archive, &hash), &dir.path().join("new/folder"), &ProgressBar::hidden())
                .unwrap_err();
        server.thread.join().unwrap();
        assert_eq!(names(&dir), Vec::<PathBuf>::new());
        error
    }

    fn names(dir: &TempDir) -> Vec<PathBuf> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn an_archive_is_unpacked_and_then_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let archive = sound_archive();
        let server = serve("200 OK", archive.len(), &archive);
        let hash = sha256(&archive);
        let download = archived(&server.url, &archive, &hash);
        let progress = ProgressBar::hidden();
        let folder = fetch_one(download, &dir.path().join("new/folder"), &progress).unwrap();
        server.thread.join().unwrap();
        assert_eq!(folder, dir.path().join("new/folder/set"));
        assert_eq!(fs::read(folder.join("a.bin")).unwrap(), b"aaaaa");
        assert_eq!(fs::read_dir(dir.path().join("new/folder")).unwrap().count(), 1);
        assert_eq!((progress.length(), progress.is_finished()), (Some(archive.len() as u64), true));

        // There is no server any more.
        assert_eq!(fetch_one(download, &dir.path().join("new/folder"), &progress).unwrap(), folder);
    }

    /// Nothing is put in place before everything is there.
    #[test]
    fn several_files_are_put_in_place_together() {
        let contents = [&b"first"[..], b"second file"];
        let hashes = contents.map(sha256);
        let fetch_from = |servers: [&Server; 2], dir: &TempDir| {
            let [first, second] = [0, 1].map(|i| Download {
                url: &servers[i].url,
                sha256: &hashes[i],
                bytes: contents[i].len() as u64,
                content: Content::File(["a.gz", "b.gz"][i]),
            });
            fetch(&Source { folder: FOLDER, downloads: &[first, second] }, dir.path(), &ProgressBar::hidden())
        };
        let dir = tempfile::tempdir().unwrap();
        let servers = contents.map(|content| serve("200 OK", content.len(), content));
        let folder = fetch_from([&servers[0], &servers[1]], &dir).unwrap();
        assert_eq!(names(&dir), std::slice::from_ref(&folder));
        assert_eq!(["a.gz", "b.gz"].map(|name| fs::read(folder.join(name)).unwrap()), contents);
        // There is no server any more.
        assert_eq!(fetch_from([&servers[0], &servers[1]], &dir).unwrap(), folder);
        fs::write(folder.join("b.gz"), "secon").unwrap();
        let error = fetch_from([&servers[0], &servers[1]], &dir).unwrap_err();
        assert!(matches!(error, DataError::Incomplete { expected: 11, found: Some(5), .. }), "{error}");

        let dir = tempfile::tempdir().unwrap();
        let servers = [serve("200 OK", 5, b"first"), serve("200 OK", 11, b"secono file")];
        let error = fetch_from([&servers[0], &servers[1]], &dir).unwrap_err();
        assert!(matches!(&error, DataError::DownloadHash { url, .. } if *url == servers[1].url), "{error}");
        assert!(names(&dir).is_empty());
    }

    /// Of `SSL_CERT_FILE`, which is read by processes of their own.
    #[test]
    fn servers_are_trusted_by_the_certificates_of_the_environment() {
        const URL: &str = "SAM_EXAMPLES_TEST_URL";
        const CONTENT: &[u8] = b"content";
        if let Ok(url) = env::var(URL) {
            let dir = tempfile::tempdir().unwrap();
            let (hash, bytes) = (sha256(CONTENT), CONTENT.len() as u64);
            let download = Download { url: &url, sha256: &hash, bytes, content: Content::File("a") };
            match fetch_one(download, dir.path(), &ProgressBar::hidden()) {
                Ok(folder) => assert_eq!(fs::read(folder.join("a")).unwrap(), CONTENT),
                Err(error) => panic!("{:#}", anyhow::Error::from(error)),
            }
            return;
        }
        let (url, certificate) = serve_tls(CONTENT);
        let (_, other) = serve_tls(CONTENT);
        let dir = tempfile::tempdir().unwrap();
        let output = |certificate| {
            let path = dir.path().join("certificates.pem");
            fs::write(&path, certificate).unwrap();
            let test = "data::download::tests::servers_are_trusted_by_the_certificates_of_the_environment";
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", test, "--nocapture"]).env(URL, &url).env("SSL_CERT_FILE", path);
            command.env_remove("SSL_CERT_DIR").env("NO_PROXY", "localhost").output().unwrap()
        };
        let trusted = output(certificate);
        assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stderr));
        let untrusted = output(other);
        let error = String::from_utf8(untrusted.stderr).unwrap();
        assert!(!untrusted.status.success() && error.contains("invalid peer certificate"), "{error}");
    }

    /// The loader finds what was downloaded, by the names of its files.
    #[test]
    fn downloads_are_what_the_loader_reads() {
        use clap::ValueEnum as _;
        for archive in Archive::value_variants() {
            let source = archive.source();
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join(source.folder);
            fs::create_dir(&folder).unwrap();
            for download in source.downloads {
                assert_eq!(download.sha256.len(), 64);
                let names: Vec<_> = match download.content {
                    Content::File(name) => vec![name],
                    Content::TarGz(files) => files.iter().map(|(name, _)| *name).collect(),
                };
                for name in names {
                    fs::write(folder.join(name), "").unwrap();
                }
            }
            for dir in [dir.path(), &folder] {
                // Recognised, whole, and then refused for its empty files.
                let error = crate::data::load(dir, None).unwrap_err();
                assert!(matches!(error, DataError::Empty { .. }), "{archive:?}: {error}");
            }
        }
    }

    #[test]
    fn an_incomplete_folder_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("set")).unwrap();
        fs::write(dir.path().join("set/a.bin"), "aaaa").unwrap();
        let error =
            fetch_one(archived("http://127.0.0.1:9/", b"", ""), dir.path(), &ProgressBar::hidden()).unwrap_err();
        assert!(matches!(error, DataError::Incomplete { expected: 5, found: Some(4), .. }), "{error}");
        fs::write(dir.path().join("set/a.bin"), "aaaaa").unwrap();
        let error =
            fetch_one(archived("http://127.0.0.1:9/", b"", ""), dir.path(), &ProgressBar::hidden()).unwrap_err();
        assert!(error.to_string().contains("b.bin` has no bytes, expected 3: remove its folder"), "{error}");
    }

    #[test]
    fn no_connection_is_an_error() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}/set.tar.gz");
        let dir = tempfile::tempdir().unwrap();
        let error = fetch_one(archived(&url, b"", ""), &dir.path().join("new"), &ProgressBar::hidden()).unwrap_err();
        assert!(matches!(error, DataError::Network { .. }) && error.to_string().contains(&url), "{error}");
        assert!(names(&dir).is_empty());
    }

    #[test]
    fn a_bad_status_is_an_error() {
        let error = failure(&sound_archive(), "404 Not Found", 4, b"gone");
        assert!(matches!(&error, DataError::Network { source, .. } if source.to_string().contains("404")), "{error}");
    }

    #[test]
    fn a_broken_connection_is_an_error() {
        let archive = sound_archive();
        let error = failure(&archive, "200 OK", archive.len(), &archive[..archive.len() / 2]);
        assert!(matches!(error, DataError::Network { .. }), "{error}");
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        let archive = sound_archive();
        let short = &archive[..archive.len() - 1];
        let error = failure(&archive, "200 OK", short.len(), short);
        assert!(matches!(error, DataError::DownloadSize { found, .. } if found == short.len() as u64), "{error}");
        let long = [archive.as_slice(), b"and more"].concat();
        let error = failure(&archive, "200 OK", long.len(), &long);
        assert!(error.to_string().contains("has more than"), "{error}");
    }

    #[test]
    fn a_wrong_hash_is_an_error() {
        let archive = sound_archive();
        let mut changed = archive.clone();
        changed[20] ^= 1;
        let error = failure(&archive, "200 OK", archive.len(), &changed);
        assert!(matches!(&error, DataError::DownloadHash { found, .. } if *found == sha256(&changed)), "{error}");
    }

    #[test]
    fn entries_outside_the_folder_are_refused() {
        let foreign = [
            ("set/../../evil", EntryType::Regular),
            ("../evil", EntryType::Regular),
            ("/tmp/evil", EntryType::Regular),
            ("other/evil", EntryType::Regular),
            ("set/link", EntryType::Symlink),
            ("set/hard", EntryType::Link),
        ];
        for (path, kind) in foreign {
            let archive = archive(&[("set/a.bin", EntryType::Regular, b"aaaaa"), (path, kind, b"")]);
            let error = failure(&archive, "200 OK", archive.len(), &archive);
            assert!(matches!(&error, DataError::ForeignEntry { entry, .. } if entry == Path::new(path)), "{error}");
        }
    }

    #[test]
    fn what_does_not_unpack_is_an_error() {
        let sound = sound_archive();
        for archive in [b"not an archive".as_slice(), &sound[..sound.len() - 30]] {
            let error = failure(archive, "200 OK", archive.len(), archive);
            assert!(matches!(error, DataError::Unpack { .. }), "{error}");
        }
        let archive = archive(&[("set/a.bin", EntryType::Regular, b"aaaaa")]);
        let error = failure(&archive, "200 OK", archive.len(), &archive);
        assert!(
            matches!(&error, DataError::Incomplete { path, found: None, .. } if path.ends_with("b.bin")),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for into in [file.clone(), file.join("below")] {
            let error = fetch_one(archived("http://127.0.0.1:9/", b"", ""), &into, &ProgressBar::hidden()).unwrap_err();
            assert!(matches!(&error, DataError::Write { path, .. } if *path == into), "{error}");
        }
        assert_eq!(names(&dir), [file]);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = archived("http://127.0.0.1:9/", b"content", "")
            .copy(&b"content"[..], &mut Full, Path::new("data"), &ProgressBar::hidden())
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot write to `data`: check its permissions and the free space");
    }
}
