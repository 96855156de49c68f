//! Small file systems that a test can fill.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use garage_nats::private;
use nix::unistd::Uid;

use crate::{Error, Result};

/// The file that takes the room.
const BALLAST: &str = "ballast";

/// Some folders that are file systems of their own, in memory. Dropping it unmounts them. Drop the servers that use them
/// first.
#[derive(Debug)]
pub struct SmallDisk {
    mounted: Vec<PathBuf>,
    mib: u64,
}

impl SmallDisk {
    /// Mounts a file system of `mib` MiB at each of these paths below `root`.
    ///
    /// # Errors
    /// When the user may not mount file systems.
    pub fn mount<P: AsRef<Path>>(root: &Path, paths: &[P], mib: u64) -> Result<Self> {
        if !Uid::effective().is_root() {
            let reason = "only root may mount the file system that the test fills; repeat the command with `unshare \
                          --map-root-user --mount` before it, for example `unshare -rm cargo test …`";
            return Err(Error::Other { action: "mount a file system", reason: reason.to_owned() });
        }
        let mut disk = Self { mounted: Vec::new(), mib };
        for path in paths {
            let path = root.join(path);
            private::folder(&path).map_err(Error::io(format!("create {}", path.display())))?;
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "garage"]).arg(&path))?;
            disk.mounted.push(path);
        }
        Ok(disk)
    }

    /// Fills the file system with this index.
    ///
    /// # Errors
    /// When there is no such file system, or it cannot be written for another reason.
    pub fn fill(&self, index: usize) -> Result<()> {
        let path = self.ballast(index)?;
        let file = fs::File::create(&path).map_err(Error::io(format!("create {}", path.display())))?;
        // In blocks: byte by byte, a debug build would take seconds.
        let mut file = io::BufWriter::with_capacity(1 << 20, file);
        let written = io::copy(&mut io::Read::take(io::repeat(0), (self.mib + 1) << 20), &mut file);
        match written {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            Err(error) => Err(Error::io(format!("write {}", path.display()))(error)),
            Ok(_) => Err(Error::Other { action: "fill a file system", reason: "it has too much room".to_owned() }),
        }
    }

    /// Removes what [`fill`](Self::fill) has written.
    ///
    /// # Errors
    /// When there is no such file system, or it is not filled.
    pub fn make_room(&self, index: usize) -> Result<()> {
        let path = self.ballast(index)?;
        fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))
    }

    fn ballast(&self, index: usize) -> Result<PathBuf> {
        let path = self.mounted.get(index).map(|path| path.join(BALLAST));
        path.ok_or_else(|| Error::Other { action: "find a file system", reason: format!("there is no number {index}") })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        for path in &self.mounted {
            // `-l` also works while a process that ends still has files open.
            if let Err(error) = run(Command::new("umount").arg("-l").arg(path)) {
                tracing::warn!(%error, path = %path.display(), "file system not unmounted");
            }
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command.output().map_err(Error::io(format!("run {name}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Other { action: "mount or unmount", reason: String::from_utf8_lossy(&output.stderr).into_owned() })
}
