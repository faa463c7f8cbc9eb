//! A certificate and its key, from PEM files (`--tls-cert`, `--tls-key`).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Most bytes of a certificate with those that vouch for it, and of a key.
const MOST_PEM: u64 = 1 << 20;

/// What stands in a file of at most `most` bytes. It may be a pipe: secrets come from other programs.
///
/// # Errors
/// What cannot be read, and what is longer.
pub fn bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        let what = format!("it has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(bytes)
}

/// Why there is no TLS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("cannot read `{}`: {reason}, expected {expected} in PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected in it.
        expected: &'static str,
        /// Why.
        reason: String,
    },
    /// Certificate and key do not belong together, or are of a kind that is not known.
    #[error("certificate `{}` and key `{}` cannot be used: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What a server needs that has this certificate, and those that vouch for it, in one file, and its key in another.
///
/// # Errors
/// [`TlsError`].
pub fn config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let failed = |path: &Path, expected, reason: String| TlsError::File {
        path: path.to_owned(),
        expected,
        reason,
    };
    let read = |path: &Path, expected| {
        bounded(path, MOST_PEM).map_err(|error| failed(path, expected, error.to_string()))
    };
    let chain = CertificateDer::pem_slice_iter(&read(cert, "a certificate")?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(cert, "a certificate", said(error)))?;
    if chain.is_empty() {
        let reason = "no certificate is in it".to_owned();
        return Err(failed(cert, "a certificate", reason));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key, "a private key")?)
        .map_err(|error| failed(key, "a private key", said(error)))?;
    let pair = |source| TlsError::Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Without what stands in the file.
fn said(error: pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "there is none in it".to_owned(),
        _damaged => "it is damaged".to_owned(),
    }
}
