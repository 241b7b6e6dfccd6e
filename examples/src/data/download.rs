//! Data sets from the network: fetched, checked, unpacked, and only then put in place.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

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
}

/// Where an archive (`.tar.gz`) is, and what must come of it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Where it is.
    pub url: &'a str,
    /// SHA-256 of the archive, lower-case hexadecimal.
    pub sha256: &'a str,
    /// Length of the archive in bytes.
    pub bytes: u64,
    /// The one folder that everything in it lies in.
    pub folder: &'a str,
    /// Files of that folder that make the data set, with their length in bytes.
    pub files: &'a [(&'a str, u64)],
}

impl Archive {
    /// Where it is: the home page of the CIFAR sets. Hashes as TensorFlow Datasets has them.
    #[must_use]
    pub const fn source(self) -> Source<'static> {
        match self {
            Self::Cifar10 => Source {
                url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                bytes: 170_052_171,
                folder: "cifar-10-batches-bin",
                files: &[
                    ("data_batch_1.bin", 30_730_000),
                    ("data_batch_2.bin", 30_730_000),
                    ("data_batch_3.bin", 30_730_000),
                    ("data_batch_4.bin", 30_730_000),
                    ("data_batch_5.bin", 30_730_000),
                    ("test_batch.bin", 30_730_000),
                ],
            },
            Self::Cifar100 => Source {
                url: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                bytes: 168_513_733,
                folder: "cifar-100-binary",
                files: &[("train.bin", 153_700_000), ("test.bin", 30_740_000)],
            },
        }
    }
}

/// Downloads and unpacks a known archive: [`fetch`] from [`Archive::source`].
///
/// # Errors
///
/// As [`fetch`].
pub fn download(archive: Archive, into: &Path, progress: &ProgressBar) -> Result<PathBuf, DataError> {
    fetch(&archive.source(), into, progress)
}

/// Downloads an archive, checks its length and hash, unpacks it in the folder `into` (made if need be), and returns the
/// data set's own folder there, for [`load`](super::load). If that is there already and complete, nothing is done.
///
/// `progress` is made to count bytes; [`ProgressBar::hidden`] for silence.
///
/// # Errors
///
/// If the network fails, if the archive is not the right one, and if `into` cannot be written to. What has been written
/// is gone again then. A folder that is there but incomplete is an error too: nobody's files are replaced.
pub fn fetch(source: &Source<'_>, into: &Path, progress: &ProgressBar) -> Result<PathBuf, DataError> {
    let target = into.join(source.folder);
    if target.exists() {
        source.check_files(&target)?;
        return Ok(target);
    }
    let _made = MadeFolders::make(into).map_err(DataError::writing(into))?;
    let archive = source.receive(into, progress)?;
    // On the same file system as the target, so that putting it in place is one step.
    let scratch = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(into).map_err(DataError::writing(into))?;
    source.unpack(archive, scratch.path())?;
    let unpacked = scratch.path().join(source.folder);
    source.check_files(&unpacked)?;
    fs::rename(&unpacked, &target).map_err(DataError::writing(&target))?;
    Ok(target)
}

impl Source<'_> {
    /// The archive in a file without a name: not even a killed process leaves it behind.
    fn receive(&self, into: &Path, progress: &ProgressBar) -> Result<File, DataError> {
        let mut file = tempfile::tempfile_in(into).map_err(DataError::writing(into))?;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_mins(1)))
            .timeout_per_read(Some(Duration::from_mins(1)))
            .build()
            .into();
        let mut response = agent.get(self.url).call().map_err(|source| self.network_error(source))?;

        progress.set_length(self.bytes);
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left") {
            progress.set_style(style);
        }
        let received = self.copy(response.body_mut().as_reader(), &mut file, into, progress);
        progress.finish_and_clear();
        received?;
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

    fn unpack(&self, archive: File, into: &Path) -> Result<(), DataError> {
        let failed = |source| DataError::Unpack { url: self.url.to_owned(), path: into.to_path_buf(), source };
        let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(archive)));
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let path = entry.path().map_err(failed)?.into_owned();
            let kind = entry.header().entry_type();
            // No links: with them, a path within the folder can lead out of it.
            let is_plain = kind.is_file() || kind.is_dir();
            let is_inside =
                path.starts_with(self.folder) && path.components().all(|part| matches!(part, Component::Normal(_)));
            if !(is_plain && is_inside) {
                let folder = self.folder.to_owned();
                return Err(DataError::ForeignEntry { url: self.url.to_owned(), entry: path, folder });
            }
            entry.unpack_in(into).map_err(failed)?;
        }
        Ok(())
    }

    fn check_files(&self, folder: &Path) -> Result<(), DataError> {
        for &(name, expected) in self.files {
            let path = folder.join(name);
            let found = fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|file| file.len());
            if found != Some(expected) {
                return Err(DataError::Incomplete { path, expected, found });
            }
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
    use std::thread::{self, JoinHandle};

    use flate2::{Compression, write::GzEncoder};
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

    fn source<'a>(url: &'a str, archive: &[u8], sha256: &'a str) -> Source<'a> {
        Source { url, sha256, bytes: archive.len() as u64, folder: FOLDER, files: FILES }
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
        let source = source(&server.url, archive, &hash);
        let error = fetch(&source, &dir.path().join("new/folder"), &ProgressBar::hidden()).unwrap_err();
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
        let source = source(&server.url, &archive, &hash);
        let progress = ProgressBar::hidden();
        let folder = fetch(&source, &dir.path().join("new/folder"), &progress).unwrap();
        server.thread.join().unwrap();
        assert_eq!(folder, dir.path().join("new/folder/set"));
        assert_eq!(fs::read(folder.join("a.bin")).unwrap(), b"aaaaa");
        assert_eq!(fs::read_dir(dir.path().join("new/folder")).unwrap().count(), 1);
        assert_eq!((progress.length(), progress.is_finished()), (Some(archive.len() as u64), true));

        // There is no server any more.
        assert_eq!(fetch(&source, &dir.path().join("new/folder"), &progress).unwrap(), folder);
    }

    #[test]
    fn an_incomplete_folder_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("set")).unwrap();
        fs::write(dir.path().join("set/a.bin"), "aaaa").unwrap();
        let error = fetch(&source("http://127.0.0.1:9/", b"", ""), dir.path(), &ProgressBar::hidden()).unwrap_err();
        assert!(matches!(error, DataError::Incomplete { expected: 5, found: Some(4), .. }), "{error}");
        fs::write(dir.path().join("set/a.bin"), "aaaaa").unwrap();
        let error = fetch(&source("http://127.0.0.1:9/", b"", ""), dir.path(), &ProgressBar::hidden()).unwrap_err();
        assert!(error.to_string().contains("b.bin` has no bytes, expected 3: remove its folder"), "{error}");
    }

    #[test]
    fn no_connection_is_an_error() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}/set.tar.gz");
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(&source(&url, b"", ""), &dir.path().join("new"), &ProgressBar::hidden()).unwrap_err();
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
            let error = fetch(&source("http://127.0.0.1:9/", b"", ""), &into, &ProgressBar::hidden()).unwrap_err();
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
        let error = source("http://127.0.0.1:9/", b"content", "")
            .copy(&b"content"[..], &mut Full, Path::new("data"), &ProgressBar::hidden())
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot write to `data`: check its permissions and the free space");
    }
}
