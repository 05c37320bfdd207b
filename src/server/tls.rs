//! TLS by rustls: certificates from files, read again when they change.

use super::reload::Watched;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, crypto::ring};

/// Where the server's certificate is.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// PEM: the certificate, then those that vouch for it.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: who vouches for clients, which must all have a certificate then.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be spoken. A key's content is never shown.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {reason}", .path.display())]
    File { path: PathBuf, reason: String },
    #[error("the certificate and the key do not go together: {0}")]
    Pair(rustls::Error),
    #[error("{}: it vouches for no client", .path.display())]
    NoClients { path: PathBuf },
}

/// The certificates in force.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the certificates.
    ///
    /// # Errors
    /// The first file that is not what it should be.
    pub fn open(files: TlsFiles) -> Result<Arc<Tls>, TlsError> {
        let config = RwLock::new(Arc::new(read(&files)?));
        Ok(Arc::new(Tls { files, config }))
    }

    /// For the next connection; those that are open keep what they began with.
    pub fn acceptor(&self) -> TlsAcceptor {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(config.clone())
    }
}

impl Watched for Tls {
    fn files(&self) -> Vec<PathBuf> {
        let files = &self.files;
        let both = [files.certificate.clone(), files.key.clone()];
        both.into_iter().chain(files.client_ca.clone()).collect()
    }

    fn reload(&self) -> Result<(), String> {
        let config = Arc::new(read(&self.files).map_err(|error| error.to_string())?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let certificates = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::File {
        path: files.key.clone(),
        reason: match error {
            rustls::pki_types::pem::Error::NoItemsFound => "there is no private key in it".into(),
            error => error.to_string(),
        },
    })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in self::certificates(path)? {
                roots.add(certificate).map_err(|error| TlsError::File {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let none = |_| TlsError::NoClients { path: path.clone() };
            builder.with_client_cert_verifier(verifier.map_err(none)?)
        }
    };
    let mut config = builder
        .with_single_cert(certificates, key)
        .map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |reason: String| TlsError::File {
        path: path.clone(),
        reason,
    };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
    let found: Vec<_> = found
        .collect::<Result<_, _>>()
        .map_err(|error| bad(error.to_string()))?;
    match found.is_empty() {
        true => Err(bad("there is no certificate in it".to_owned())),
        false => Ok(found),
    }
}
