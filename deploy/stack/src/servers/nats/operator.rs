//! What servers and users of NATS are told in operator mode, in a folder: of a local stack, or of a deployment.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use garage_events::game::Secret;
use garage_worker::operator::{self, SignError};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Map, Value, json};

use super::role::{self, Role};
use crate::{Error, Result, secret};

/// The account that holds the log.
const ACCOUNT: &str = "GARAGE";

/// The operator with its accounts, and where the credentials of their users are.
#[derive(Debug, Clone)]
pub struct Operator {
    folder: PathBuf,
    settings: Map<String, Value>,
}

impl Operator {
    /// Keeps the seeds that are in the folder, makes those that lack, and writes the credentials of each role and of the
    /// system account anew (`nats-<role>.creds`). Those of before go on to be accepted, with their rights.
    ///
    /// # Errors
    /// When the folder cannot be read or written, or holds what is no seed.
    pub fn renew(folder: &Path) -> Result<Self> {
        let key = |name: &str, kind| load_or_create(&folder.join(format!("nats-{name}.seed")), kind);
        let own = key("operator", KeyPairType::Operator)?;
        let system = key("sys", KeyPairType::Account)?;
        let account = key("account", KeyPairType::Account)?;
        let game = load_or_create(&game_signing_key(folder), KeyPairType::Account)?;

        let signing = Error::other::<SignError>;
        let accounts = json!({
            system.public_key(): operator::system_account(&own, &system).map_err(signing("sign the system account"))?,
            account.public_key(): operator::account(&own, &account, ACCOUNT, &game, &role::game())
                .map_err(signing("sign the account"))?,
        });
        let settings = Map::from_iter([
            ("operator".into(), operator::operator(&own, &system).map_err(signing("sign the operator"))?.into()),
            ("system_account".into(), system.public_key().into()),
            ("resolver".into(), "MEMORY".into()),
            ("resolver_preload".into(), accounts),
        ]);

        for role in Role::ALL {
            let user = operator::user(&account, role.name(), role.rights().as_ref()).map_err(signing("sign a user"))?;
            secret::write_private(&credentials(folder, role.name()), user.expose())?;
        }
        let user = operator::user(&system, "sys", None).map_err(signing("sign a user"))?;
        secret::write_private(&credentials(folder, "sys"), user.expose())?;

        Ok(Self { folder: folder.to_owned(), settings })
    }

    /// Writes the servers' part of the configuration, which is public, into the folder: `nats-operator.conf`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_settings(&self) -> Result<()> {
        secret::write_private(&self.folder.join("nats-operator.conf"), &self.included())
    }

    /// The settings of a server.
    pub(super) fn settings(&self) -> Map<String, Value> {
        self.settings.clone()
    }

    /// The same as a text that a configuration includes: without the outermost braces.
    fn included(&self) -> String {
        let text = format!("{:#}", Value::Object(self.settings.clone()));
        let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
        lines.fold(String::new(), |page, line| page + line + "\n")
    }

    pub(super) fn credentials(&self, role: Role) -> PathBuf {
        credentials(&self.folder, role.name())
    }

    pub(super) fn game_signing_key(&self) -> PathBuf {
        game_signing_key(&self.folder)
    }
}

fn credentials(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("nats-{user}.creds"))
}

fn game_signing_key(folder: &Path) -> PathBuf {
    folder.join("nats-game.seed")
}

fn load_or_create(path: &Path, kind: KeyPairType) -> Result<KeyPair> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let wrong = |error: SignError| Error::io(format!("use {}", path.display()))(io::Error::other(error));
            operator::key(&Secret::new(text), kind).map_err(wrong)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = KeyPair::new(kind);
            let seed = key.seed().map_err(Error::other("make a key of NATS"))?;
            secret::write_private(path, &seed)?;
            Ok(key)
        }
        Err(error) => Err(Error::io(format!("read {}", path.display()))(error)),
    }
}
