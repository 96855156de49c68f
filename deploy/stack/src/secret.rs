//! Random passwords of the local stack, in files that only their owner can read.

use std::{fs, io::ErrorKind, path::Path};

use garage_nats::private;
use rand::{RngExt, distr::Alphanumeric};

use crate::{Error, Result};

/// A random password with 190 bits. It is alphanumeric, so that URLs, SQL and configuration files need
/// no escaping.
#[must_use]
pub fn random() -> String {
    rand::rng().sample_iter(Alphanumeric).take(32).map(char::from).collect()
}

/// Reads the password from the file. Creates the file with a random password if it is missing or empty. So a stack that
/// starts again in the same folder keeps its passwords.
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

/// Writes a file with mode 0600, and replaces an existing file.
///
/// # Errors
/// When the file cannot be written.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    private::write(path, content).map_err(Error::io(format!("write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_password_file_is_private_and_keeps_its_content() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("secrets/x.password");
        let password = load_or_create(&path).unwrap();
        assert_eq!(password.len(), 32);
        assert_eq!(load_or_create(&path).unwrap(), password);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(root.path().join("secrets")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
