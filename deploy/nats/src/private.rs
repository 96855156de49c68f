//! Files that only their owner can read.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Result, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Writes a file of mode 0600, and replaces an existing file. Creates its folder if it is missing.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, content: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        folder(parent)?;
    }
    // Removed first: the mode of a file is set only when it is created.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())
}

/// Creates a folder of mode 0700, and its missing parents with the same mode.
///
/// # Errors
/// If it cannot be created.
pub fn folder(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_owner_can_read_a_written_file_and_its_folder_even_if_the_old_file_was_readable_by_all() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("secrets/x");
        write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(root.path().join("secrets")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
