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
    fetch(&ArchiveSpec { folder: FOLDER, downloads: &[download] }, into, progress)
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
        fetch(&ArchiveSpec { folder: FOLDER, downloads: &[first, second] }, dir.path(), &ProgressBar::hidden())
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
        let source = archive.spec();
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
            // Recognized, whole, and then refused for its empty files.
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
    let error = fetch_one(archived("http://127.0.0.1:9/", b"", ""), dir.path(), &ProgressBar::hidden()).unwrap_err();
    assert!(matches!(error, DataError::Incomplete { expected: 5, found: Some(4), .. }), "{error}");
    fs::write(dir.path().join("set/a.bin"), "aaaaa").unwrap();
    let error = fetch_one(archived("http://127.0.0.1:9/", b"", ""), dir.path(), &ProgressBar::hidden()).unwrap_err();
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
    assert!(matches!(&error, DataError::Incomplete { path, found: None, .. } if path.ends_with("b.bin")), "{error}");
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
