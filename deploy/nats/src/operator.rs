//! The keys, credentials and server settings of NATS in operator mode, as files in a folder.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use garage_events::game::Secret;
use garage_worker::operator::{self, SignError};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Map, Value, json};

use crate::{
    Error, private,
    role::{self, Role},
};

type Result<T> = std::result::Result<T, Error>;

/// The account of the log.
const ACCOUNT: &str = "GARAGE";

/// The NATS operator with its accounts, and the folder of its files.
#[derive(Debug, Clone)]
pub struct Operator {
    folder: PathBuf,
    settings: Map<String, Value>,
}

impl Operator {
    /// Keeps the seeds in the folder, creates missing ones, and writes new credentials for each role and for the system
    /// account (`nats-<role>.creds`). Older credentials stay valid, with the rights that they had.
    ///
    /// # Errors
    /// If the folder cannot be read or written, or a seed file is not valid.
    pub fn renew(folder: &Path) -> Result<Self> {
        let key = |name: &str, kind| load_or_create(&folder.join(format!("nats-{name}.seed")), kind);
        let own = key("operator", KeyPairType::Operator)?;
        let system = key("sys", KeyPairType::Account)?;
        let account = key("account", KeyPairType::Account)?;
        let game = load_or_create(&game_signing_key(folder), KeyPairType::Account)?;

        let signing = Error::key::<SignError>;
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
            write_private(&credentials(folder, role.name()), user.expose())?;
        }
        let user = operator::user(&system, "sys", None).map_err(signing("sign a user"))?;
        write_private(&credentials(folder, "sys"), user.expose())?;

        Ok(Self { folder: folder.to_owned(), settings })
    }

    /// Writes the servers' part of the configuration, `nats-operator.conf`, into the folder. It contains no secret.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_settings(&self) -> Result<()> {
        write_private(&self.folder.join("nats-operator.conf"), &self.include_text())
    }

    /// The servers' part of the configuration: operator, accounts and their resolver.
    #[must_use]
    pub fn settings(&self) -> Map<String, Value> {
        self.settings.clone()
    }

    /// The settings as text to include in a configuration file: without the outermost braces.
    fn include_text(&self) -> String {
        let text = format!("{:#}", Value::Object(self.settings.clone()));
        let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
        lines.fold(String::new(), |page, line| page + line + "\n")
    }

    /// The file with the credentials of this role's user.
    #[must_use]
    pub fn credentials(&self, role: Role) -> PathBuf {
        credentials(&self.folder, role.name())
    }

    /// The file with the seed that signs the NATS users of game servers.
    #[must_use]
    pub fn game_signing_key(&self) -> PathBuf {
        game_signing_key(&self.folder)
    }
}

fn credentials(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("nats-{user}.creds"))
}

fn game_signing_key(folder: &Path) -> PathBuf {
    folder.join("nats-game.seed")
}

fn write_private(path: &Path, content: &str) -> Result<()> {
    private::write(path, content).map_err(Error::io(format!("write {}", path.display())))
}

fn load_or_create(path: &Path, kind: KeyPairType) -> Result<KeyPair> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let invalid = |error: SignError| Error::io(format!("use {}", path.display()))(io::Error::other(error));
            operator::key(&Secret::new(text), kind).map_err(invalid)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = KeyPair::new(kind);
            let seed = key.seed().map_err(Error::key("create a NATS key"))?;
            write_private(path, &seed)?;
            Ok(key)
        }
        Err(error) => Err(Error::io(format!("read {}", path.display()))(error)),
    }
}
