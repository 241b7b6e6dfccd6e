//! Downloads of data sets: received, verified, unpacked, and only then put in place.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::archives::{Archive, ArchiveSpec, Content, Download};
use super::error::DataError;
use crate::io::files::{make_folder, sync_folder};
use crate::util::hex::hex;

/// Downloads a known data set: [`fetch`] from [`Archive::spec`].
///
/// # Errors
///
/// As [`fetch`].
pub fn download(archive: Archive, into: &Path, progress: &ProgressBar) -> Result<PathBuf, DataError> {
    fetch(&archive.spec(), into, progress)
}

/// Downloads files, checks the length and the hash of each, puts them, or what they unpack to, in the folder
/// of the data set in `into` (created if needed), and returns that folder, for [`load`](super::load()). If it is there
/// already and complete, nothing is done.
///
/// Servers are verified with the root certificates of the system, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR` if these are
/// set, or the compiled-in ones if the system has none.
///
/// `progress` counts bytes; [`ProgressBar::hidden`] shows nothing.
///
/// # Errors
///
/// If the network fails, if a file is not the right one, and if `into` cannot be written to. What has been written
/// is removed then. A folder that exists but is incomplete is an error too: no file is replaced.
pub fn fetch(spec: &ArchiveSpec<'_>, into: &Path, progress: &ProgressBar) -> Result<PathBuf, DataError> {
    let target = into.join(spec.folder);
    if target.exists() {
        spec.check_files(&target)?;
        return Ok(target);
    }
    let _made = MadeFolders::make(into).map_err(DataError::writing(into))?;
    let received = spec.receive(into, progress)?;
    // On the same file system as the target, so that putting it in place is one step.
    let scratch = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(into).map_err(DataError::writing(into))?;
    for (download, file) in spec.downloads.iter().zip(received) {
        match download.content {
            Content::File(name) => copy(file, &scratch.path().join(spec.folder), name)?,
            Content::TarGz(_) => download.unpack(file, scratch.path(), spec.folder)?,
        }
    }
    let unpacked = scratch.path().join(spec.folder);
    spec.check_files(&unpacked)?;
    sync_all(&unpacked)
        .and_then(|()| fs::rename(&unpacked, &target))
        .and_then(|()| sync_folder(into))
        .map_err(DataError::writing(&target))?;
    Ok(target)
}

/// Waits until the files of a folder and of those in it are on the disk.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_all(&path)?;
        } else {
            File::open(path)?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Copies a file into a folder, which is created if needed.
fn copy(mut from: File, folder: &Path, name: &str) -> Result<(), DataError> {
    let path = folder.join(name);
    let copied = fs::create_dir_all(folder)
        .and_then(|()| File::create_new(&path))
        .and_then(|mut to| io::copy(&mut from, &mut to));
    copied.map(drop).map_err(DataError::writing(&path))
}

/// The root certificates that servers are verified with.
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

impl ArchiveSpec<'_> {
    /// Receives all files into unnamed temporary files, which are gone when the process ends.
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

/// Folders that had to be created, the innermost first; those that are empty in the end are removed.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(path: &Path) -> io::Result<Self> {
        let missing = path.ancestors().take_while(|folder| !folder.exists()).map(Path::to_path_buf);
        let made = Self(missing.collect());
        make_folder(path)?;
        Ok(made)
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Fails for a folder that is not empty, which stays.
            drop(fs::remove_dir(folder));
        }
    }
}

#[cfg(test)]
mod tests;
