//! The server's TLS: version 1.3 alone, with a certificate of its own making from the game's key. Clients pin the key's
//! fingerprint, so nothing else in the certificate matters.

use std::sync::Arc;

use garage_events::game::{self, Secret};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, PublicKeyData};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer, version::TLS13};

/// Why a key makes no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no RSA key in PKCS #8 PEM.
    #[error("reading the game's private key")]
    Key(#[source] rcgen::Error),
    /// No certificate could be made of it.
    #[error("making the certificate")]
    Certificate(#[source] rcgen::Error),
    /// TLS does not take it.
    #[error("setting up TLS")]
    Tls(#[from] rustls::Error),
}

/// A server's TLS and the fingerprint that its clients pin.
pub(crate) struct Identity {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) fingerprint: String,
}

/// Makes the identity of a game from its private key.
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
    // A game is joined once; tickets to resume a connection would only be state.
    config.send_tls13_tickets = 0;
    Ok(Identity { config: Arc::new(config), fingerprint })
}
