//! Passwords of the local stack: random, in files that only their owner reads.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use rand::{RngExt, distr::Alphanumeric};

use crate::{Error, Result};

/// Letters and digits, so that it needs no escape in a URL, in SQL or in a configuration file; 190 bits.
#[must_use]
pub fn random() -> String {
    rand::rng().sample_iter(Alphanumeric).take(32).map(char::from).collect()
}

/// The password in the file, which is written first when there is none: a stack that starts again on the folder of an
/// earlier one keeps its passwords.
///
/// # Errors
/// When the file can be neither read nor written.
pub fn load_or_create(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
    }
    let password = random();
    write_private(path, &password)?;
    Ok(password)
}

/// Writes a file of mode 0600 in place of what is there.
///
/// # Errors
/// When the file cannot be written.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    let write = || {
        if let Some(folder) = path.parent() {
            private_folder(folder)?;
        }
        // Removed first: a mode is given at creation only.
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content.as_bytes())
    };
    write().map_err(Error::io(format!("write {}", path.display())))
}

/// Makes a folder of mode 0700, and those above it.
pub(crate) fn private_folder(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_password_is_private_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("secrets/x.password");
        let password = load_or_create(&path).unwrap();
        assert_eq!(password.len(), 32);
        assert_eq!(load_or_create(&path).unwrap(), password);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(root.path().join("secrets")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
