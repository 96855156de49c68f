//! Sets up TLS 1.3 with a self-signed certificate of the game's key. Clients check only the fingerprint of the key, so
//! the rest of the certificate does not matter.

use std::sync::Arc;

use garage_events::game::{self, Secret};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, PublicKeyData};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer, version::TLS13};

/// Why TLS cannot be set up with a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not an RSA key in PKCS #8 PEM.
    #[error("reading the game's private key")]
    Key(#[source] rcgen::Error),
    /// The certificate cannot be created.
    #[error("creating the certificate")]
    Certificate(#[source] rcgen::Error),
    /// rustls does not accept the key or the certificate.
    #[error("setting up TLS")]
    Tls(#[from] rustls::Error),
}

/// A TLS configuration, and the fingerprint of its key.
pub(crate) struct Identity {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) fingerprint: String,
}

/// Creates a game's identity from its private key.
pub(crate) fn identity(private_key: &Secret) -> Result<Identity, Error> {
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(private_key.expose(), &PKCS_RSA_SHA256).map_err(Error::Key)?;
    let params = CertificateParams::new(vec!["game.garage.invalid".to_owned()]).map_err(Error::Certificate)?;
    let certificate = params.self_signed(&key).map_err(Error::Certificate)?;
    let fingerprint = game::fingerprint(&key.subject_public_key_info());
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())?;
    // Clients connect once per game, so TLS session resumption has no use.
    config.send_tls13_tickets = 0;
    Ok(Identity { config: Arc::new(config), fingerprint })
}
