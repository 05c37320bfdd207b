//! TLS for both ports: certificates that are trusted, and those that are not; certificates that change.

use super::web::parse;
use super::*;
use choir::server::tls::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Who vouches for others.
fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("an authority")
}

/// A certificate and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

fn pair(authority: &Authority, expired: bool) -> Pair {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    if expired {
        params.not_after = date_time_ymd(2001, 1, 1);
    }
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir_in(&ROOT.0).expect("folder"))
    }

    fn write(&self, pair: &Pair, clients: Option<&Authority>) -> TlsFiles {
        let at = |name: &str| self.0.path().join(name);
        fs::write(at("cert.pem"), &pair.certificate).expect("file");
        fs::write(at("key.pem"), &pair.key).expect("file");
        if let Some(clients) = clients {
            fs::write(at("clients.pem"), clients.pem()).expect("file");
        }
        TlsFiles {
            certificate: at("cert.pem"),
            key: at("key.pem"),
            client_ca: clients.map(|_| at("clients.pem")),
        }
    }
}

async fn start(files: TlsFiles) -> Server {
    let settings = ServerSettings {
        tls: Some(Tls::open(files).expect("certificates")),
        ..settings()
    };
    Server::start_within(engine_config(), settings, |generation| generation).await
}

fn trusting(authority: &Authority) -> ClientTlsConfig {
    let certificate = Certificate::from_pem(authority.pem());
    ClientTlsConfig::new()
        .ca_certificate(certificate)
        .domain_name("localhost")
}

/// Whether a client with these certificates is answered.
async fn answered(server: &Server, tls: ClientTlsConfig) -> bool {
    let endpoint = Channel::from_shared(format!("https://{}", server.address)).expect("address");
    let endpoint = endpoint.tls_config(tls).expect("certificates");
    let Ok(channel) = endpoint.connect().await else {
        return false;
    };
    let client = InferenceClient::new(channel);
    generate(&client, request("kjv", 2, 1)).await.is_ok()
}

#[tokio::test]
async fn tls_is_spoken_on_both_ports_and_nothing_else() {
    let (ours, other) = (authority(), authority());
    let folder = Folder::new();
    let server = start(folder.write(&pair(&ours, false), None)).await;
    assert!(answered(&server, trusting(&ours)).await);
    assert!(!answered(&server, trusting(&other)).await, "nobody vouches");
    // HTTP, by rustls itself.
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(ours.pem().as_bytes()).expect("a certificate");
    roots.add(root).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let plain = TcpStream::connect(server.http).await.expect("connect");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = connector.connect(name, plain).await.expect("TLS");
    let request = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    assert_eq!(parse(&answer).body, "ok\n");
    // Whoever does not speak it is not answered, and nobody else notices.
    for address in [server.address, server.http] {
        let mut plain = TcpStream::connect(address).await.expect("connect");
        plain.write_all(request).await.expect("write");
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        drop(TcpStream::connect(address).await.expect("connect"));
    }
    assert!(answered(&server, trusting(&ours)).await);
    server.stop().await;
}

#[tokio::test]
async fn a_socket_of_this_machine_speaks_no_tls() {
    let folder = Folder::new();
    let path = folder.0.path().join("admin");
    let doors = Doors {
        admin: Some(server::Listener::unix(&path).expect("a socket")),
        ..doors().await
    };
    let files = folder.write(&pair(&authority(), false), None);
    let settings = ServerSettings {
        tls: Some(Tls::open(files).expect("certificates")),
        ..settings()
    };
    let server = doors::start(doors, settings).await;
    let socket = tonic::transport::Endpoint::from_shared(format!("unix://{}", path.display()))
        .expect("address");
    let admin = AdminClient::new(socket.connect().await.expect("connect"));
    assert!(!status(&admin).await.draining);
    drop(admin);
    server.stop().await;
}

#[tokio::test]
async fn clients_without_a_certificate_that_is_trusted_are_not_served() {
    let (ours, clients) = (authority(), authority());
    let server = start(Folder::new().write(&pair(&ours, false), Some(&clients))).await;
    let with = |pair: &Pair| {
        let identity = Identity::from_pem(&pair.certificate, &pair.key);
        trusting(&ours).identity(identity)
    };
    assert!(answered(&server, with(&pair(&clients, false))).await);
    assert!(!answered(&server, trusting(&ours)).await, "none");
    assert!(
        !answered(&server, with(&pair(&ours, false))).await,
        "another authority's"
    );
    assert!(
        !answered(&server, with(&pair(&authority(), false))).await,
        "self-signed"
    );
    assert!(
        !answered(&server, with(&pair(&clients, true))).await,
        "expired"
    );
    server.stop().await;
}

#[tokio::test]
async fn certificates_that_change_are_read_again() {
    let (old, new) = (authority(), authority());
    let folder = Folder::new();
    let server = start(folder.write(&pair(&old, false), None)).await;
    assert!(answered(&server, trusting(&old)).await);
    folder.write(
        &Pair {
            certificate: "nonsense".into(),
            key: String::new(),
        },
        None,
    );
    assert!(answered(&server, trusting(&old)).await, "the last stay");
    folder.write(&pair(&new, false), None);
    let mut tries = 0..100_000;
    while !answered(&server, trusting(&new)).await {
        tries.next().expect("the new one comes into force");
    }
    assert!(!answered(&server, trusting(&old)).await);
    server.stop().await;
}

#[tokio::test]
async fn certificates_that_are_none_are_refused_by_their_files() {
    let folder = Folder::new();
    let (ours, other) = (pair(&authority(), false), pair(&authority(), false));
    let good = folder.write(&ours, None);
    Tls::open(good.clone()).expect("good");
    let missing = good.certificate.with_file_name("nothing.pem");
    let refused = |files: TlsFiles, said: &str| {
        let error = Tls::open(files).expect_err(said).to_string();
        assert!(error.contains(said), "{said}: {error}");
        assert!(!error.contains("BEGIN"), "{error}");
    };
    refused(
        TlsFiles {
            certificate: missing.clone(),
            ..good.clone()
        },
        "nothing.pem",
    );
    refused(
        TlsFiles {
            key: missing.clone(),
            ..good.clone()
        },
        "nothing.pem",
    );
    refused(
        TlsFiles {
            client_ca: Some(missing),
            ..good.clone()
        },
        "nothing.pem",
    );
    refused(
        TlsFiles {
            key: good.certificate.clone(),
            ..good.clone()
        },
        "no private key",
    );
    refused(
        TlsFiles {
            certificate: good.key.clone(),
            ..good.clone()
        },
        "no certificate",
    );
    fs::write(&good.key, &other.key).expect("file");
    refused(good, "do not go together");
}
